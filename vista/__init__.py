"""VISTA: lifelong user histories, summarised once, attended to at a constant cost."""
