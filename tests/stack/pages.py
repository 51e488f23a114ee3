"""The stack's pages in Debian's chromium, used as a person uses them. What they show is kept in the folder
VISTA_PICTURES, by default build/pictures.
"""

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright

from infra.processes import wait_until
from infra.servers import program

ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
WIDTH, HEIGHT = 1_280, 800
PICTURES = Path(__file__).parents[2] / "build" / "pictures"
PAGE_S, RUN_S = 120.0, 3_600.0
"""For a page to show something, and for a run: its stages take two minutes on two idle cores."""


@contextmanager
def opened_page() -> Iterator[Page]:
    """An empty page of a browser of its own."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program("chromium"), args=ARGUMENTS)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(1_000 * PAGE_S)
        yield page
        browser.close()


def keep_picture(page: Page, name: str) -> None:
    """A picture of what the window shows, in 256 colours. `tests/unit/test_pictures.py` reads the names."""
    folder = Path(os.environ.get("VISTA_PICTURES") or PICTURES)
    seen = Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")
    folder.mkdir(parents=True, exist_ok=True)
    seen.quantize(256).save(folder / f"{name}.png", optimize=True)


@dataclass(frozen=True, slots=True)
class Airflow:
    """Airflow's pages."""

    page: Page
    url: str

    def log_in(self, user: str, password: str) -> None:
        self.page.goto(self.url)
        self.page.get_by_label("Username").fill(user)
        self.page.get_by_label("Password").fill(password)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.get_by_role("link", name="Dags").first.wait_for()

    def open_form(self, dag: str) -> Locator:
        """The form of a new run."""
        self.page.goto(f"{self.url}/dags/{dag}")
        self.page.get_by_role("button", name="Trigger").click()
        form = self.page.get_by_role("dialog")
        form.locator("[name=element_recipe]").wait_for()
        return form

    def send(self, form: Locator) -> str:
        """Trigger the run; its id, as its page's address has it."""
        form.get_by_role("button", name="Trigger").click()
        self.page.wait_for_url("**/runs/*")
        return self.page.url.rpartition("/runs/")[2]

    def states_at_the_end(self, dag: str, run: str) -> Mapping[str, str]:
        """Follow a run on its page until it has ended; the state of each task, as shown."""
        self.page.goto(f"{self.url}/dags/{dag}/runs/{run}")
        states: dict[str, str] = {}

        def ended() -> bool:
            rows = self.page.locator("tbody tr").all_inner_texts()
            states.update((words[0], words[1]) for row in rows if len(words := row.split()) > 1)
            return bool(states) and ("Failed" in states.values() or {*states.values()} == {"Success"})

        assert wait_until(ended, RUN_S, every_s=2.0), states
        return states

    def open_log(self, dag: str, run: str, task: str, line: str) -> None:
        """Show the log of a task, at a line that must be in it."""
        self.page.goto(f"{self.url}/dags/{dag}/runs/{run}/tasks/{task}")
        self.page.get_by_text(line).first.scroll_into_view_if_needed()

    def run(self, dag: str, run: str) -> Any:
        """What the API says of a run to whoever is logged in."""
        return self.page.request.get(f"{self.url}/api/v2/dags/{dag}/dagRuns/{run}").json()


@dataclass(frozen=True, slots=True)
class Mlflow:
    """MLflow's pages."""

    page: Page
    url: str

    def compare(self, experiment: str, names: Sequence[str]) -> None:
        """Choose runs in an experiment's list, and open the page that compares them."""
        self.page.goto(f"{self.url}/#/experiments/{self._id(experiment)}/runs?workflowType=machine_learning")
        self.page.get_by_role(
            "button", name="Close", exact=True
        ).click()  # the assistant, which covers a third
        for name in names:
            row = self.page.get_by_role("row").filter(has=self.page.get_by_role("link", name=name))
            row.get_by_role("checkbox").first.check()
        self.page.get_by_role("button", name="Compare", exact=True).click()
        self.page.get_by_role("heading", name=f"Comparing {len(names)} Runs").wait_for()

    def values(self, parameter: str) -> list[str]:
        """A line of the table of parameters, a cell for each run that is compared."""
        line = self.page.get_by_role("row").filter(
            has=self.page.get_by_role("rowheader", name=parameter, exact=True)
        )
        return line.get_by_role("cell").all_inner_texts()

    def add_metric(self, name: str) -> list[str]:
        """Give the parallel coordinates one more axis; all that is written at the axes."""
        plot = self.page.get_by_role("tabpanel", name="Parallel Coordinates Plot")
        metrics = plot.get_by_role("combobox").nth(1)
        metrics.click()
        metrics.press_sequentially(name)
        self.page.get_by_role("option", name=name, exact=True).wait_for(state="attached")
        metrics.press("Enter")
        metrics.press("Escape")
        plot.locator("svg text").get_by_text(name, exact=True).first.wait_for()
        return plot.locator("svg text").all_text_contents()

    def open_curves(self, metric: str, names: Sequence[str]) -> int:
        """Follow the link of a metric to the curves of the runs, which its legend names; how many it draws,
        which may be more than one for a run."""
        self.page.get_by_role("link", name=metric, exact=True).click()
        for name in names:
            self.page.get_by_text(f"{name} ({metric})").first.wait_for()
        drawn = self.page.locator(".scatterlayer .trace")
        drawn.first.wait_for()
        return drawn.count()

    def _id(self, experiment: str) -> str:
        asked = f"{self.url}/api/2.0/mlflow/experiments/get-by-name"
        answer = self.page.request.get(asked, params={"experiment_name": experiment})
        return str(answer.json()["experiment"]["experiment_id"])
