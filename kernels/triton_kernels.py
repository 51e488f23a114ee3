"""The device code of quasi-linear attention in Triton; `triton_qla` launches it, README.md explains it.

A program owns one head of one chunk: CHUNK consecutive rows of one user, sources first. Suffixes: L rows of a
block, D width of queries and keys, E width of values; tiles are DP and EP wide, powers of two from 16 on, and
zero beyond D and E. Products take the type of the inputs and accumulate in float32.
"""

import torch
import triton
import triton.language as tl

SELF_BLOCK = tl.constexpr(16)
"""Candidates per step, the fewest that a product takes: their own term holds four tiles, more would spill."""

# Only what cannot change a bit is tuned: stages are how far ahead is loaded, while the number of warps may
# change the order of a row's sum. With 256 threads nothing spills.
THREADS = 256
_WARPS = THREADS // (64 if torch.version.hip else 32)
_CONFIGS = [triton.Config({}, num_warps=_WARPS, num_stages=stages) for stages in (3, 2, 4)]
_tuned = triton.autotune(
    _CONFIGS[: 1 if triton.knobs.runtime.interpret else 3], key=["D", "E"], cache_results=True
)


@triton.jit
def _sigmoid(x, TANH: tl.constexpr):
    if TANH:  # one special-function instruction per element, not two
        half = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [0.5 * x], dtype=tl.float32, is_pure=True, pack=1
        )
        return 0.5 + 0.5 * half
    else:
        return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _phi(x, PHI: tl.constexpr, TANH: tl.constexpr):
    if PHI == "silu":
        return x * _sigmoid(x, TANH)
    elif PHI == "shifted_elu":
        return tl.where(x >= 1.0, x, tl.exp(x - 1.0))
    elif PHI == "relu":
        return tl.where(x < 0.0, 0.0, x)
    else:
        return x


@triton.jit
def _slope(x, PHI: tl.constexpr, TANH: tl.constexpr):
    """phi'(x)"""
    if PHI == "silu":
        s = _sigmoid(x, TANH)
        return s * (1.0 + x * (1.0 - s))
    elif PHI == "shifted_elu":
        return tl.where(x >= 1.0, 1.0, tl.exp(x - 1.0))
    elif PHI == "relu":
        return tl.where(x <= 0.0, 0.0, 1.0)
    else:
        return tl.full(x.shape, 1.0, tl.float32)


@triton.jit
def _tile(rows, end, stride, W: tl.constexpr, WP: tl.constexpr):
    """Where rows of one head lie behind their chunk's first row, and which elements exist."""
    columns = tl.arange(0, WP)[None, :]
    inside = rows[:, None] < end
    if W != WP:
        inside = inside & (columns < W)
    return rows[:, None] * stride + columns, inside


@triton.jit
def _load(base, rows, end, stride, W: tl.constexpr, WP: tl.constexpr):
    at, inside = _tile(rows, end, stride, W, WP)
    return tl.load(base + at, mask=inside, other=0.0)


@triton.jit
def _store(base, x, rows, end, stride, W: tl.constexpr, WP: tl.constexpr):
    at, inside = _tile(rows, end, stride, W, WP)
    tl.store(base + at, x.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _state_tile(D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr):
    rows = tl.arange(0, DP)[:, None]
    columns = tl.arange(0, EP)[None, :]
    return rows * E + columns, (rows < D) & (columns < E)


@triton.jit
def _chunk(offsets, candidates, first_chunk, chunk, user, CHUNK: tl.constexpr):
    """Its first row, its sources, its rows, its number in the user, and the user's sources and rows."""
    begin = tl.load(offsets + user)
    rows = tl.load(offsets + user + 1) - begin
    sources = rows - tl.load(candidates + user)
    number = chunk - tl.load(first_chunk + user)
    skipped = number * CHUNK
    chunk_rows = tl.minimum(rows - skipped, CHUNK).to(tl.int32)
    chunk_sources = tl.minimum(tl.maximum(sources - skipped, 0), CHUNK).to(tl.int32)
    return begin + skipped, chunk_sources, chunk_rows, number, sources, rows


@_tuned
@triton.jit
def state_kernel(
    k, v, kv, parts, offsets, candidates, users, chunk_user, first_chunk, first_part,
    k_row, k_head, v_row, v_head, H: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr,
    EP: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, PHI: tl.constexpr, TANH: tl.constexpr,
):  # fmt: skip
    """phi(K_S)^T V_S of one chunk; of a user's only chunk divided by n, which is the state."""
    head, chunk = tl.program_id(0) % H, tl.program_id(0) // H
    user = tl.load(chunk_user + chunk)
    if user >= users:
        return
    first, chunk_sources, _, number, sources, _ = _chunk(offsets, candidates, first_chunk, chunk, user, CHUNK)
    if chunk_sources == 0:
        return
    k += first * k_row + head * k_head
    v += first * v_row + head * v_head
    acc_DE = tl.zeros((DP, EP), tl.float32)
    for start in range(0, chunk_sources, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        k_LD = _load(k, rows, chunk_sources, k_row, D, DP)
        v_LE = _load(v, rows, chunk_sources, v_row, E, EP)
        phi_k_LD = _phi(k_LD.to(tl.float32), PHI, TANH).to(k_LD.dtype)
        acc_DE = tl.dot(tl.trans(phi_k_LD), v_LE, acc_DE, input_precision="ieee")
    at, inside = _state_tile(D, DP, E, EP)
    if sources <= CHUNK:
        tl.store(kv + (user * H + head) * (D * E) + at, acc_DE / sources.to(tl.float32), mask=inside)
    else:
        part = tl.load(first_part + user) + number
        tl.store(parts + (part * H + head) * (D * E) + at, acc_DE, mask=inside)


@triton.jit
def reduce_kernel(
    parts, kv, g, offsets, candidates, first_part, H: tl.constexpr, STATE: tl.constexpr,
    CHUNK: tl.constexpr, PARTS: tl.constexpr, TILE: tl.constexpr, BACKWARD: tl.constexpr,
    PHI_OUT: tl.constexpr,
):  # fmt: skip
    """The sum of a user's parts in their order: the state, or backward its gradient G."""
    head, user = tl.program_id(0) % H, (tl.program_id(0) // H).to(tl.int64)
    rows = tl.load(offsets + user + 1) - tl.load(offsets + user)
    sources = rows - tl.load(candidates + user)
    chunks = tl.cdiv(rows if BACKWARD else sources, CHUNK).to(tl.int32)
    if chunks == 1:
        return
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    first = tl.load(first_part + user)
    acc = tl.zeros((TILE,), tl.float32)
    for start in range(0, chunks, PARTS):
        part = start + tl.arange(0, PARTS)
        at = ((first + part)[:, None] * H + head) * STATE + columns[None, :]
        inside = (part[:, None] < chunks) & (columns[None, :] < STATE)
        acc += tl.sum(tl.load(parts + at, mask=inside, other=0.0), 0)
    acc /= tl.maximum(sources, 1).to(tl.float32)
    at = (user * H + head) * STATE + columns
    if BACKWARD:
        z = tl.load(kv + at, mask=columns < STATE, other=0.0)
        tl.store(g + at, acc * _slope(z, PHI_OUT, False), mask=columns < STATE)
    else:
        tl.store(kv + at, acc, mask=columns < STATE)


@triton.jit
def _load_p(kv, D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, PHI_OUT: tl.constexpr):
    """phi_out(Z); zero where no state is, since phi_out(0) need not be."""
    at, inside = _state_tile(D, DP, E, EP)
    z_DE = tl.load(kv + at, mask=inside, other=0.0)
    return tl.where(inside, _phi(z_DE, PHI_OUT, False), 0.0)


@triton.jit
def _self_weight(phi_q_LD, phi_k_LD, n, D: tl.constexpr, DP: tl.constexpr):
    """y = <phi(q), phi(k)> / n of each row."""
    inside = tl.arange(0, DP)[None, :] < D
    return tl.sum(tl.where(inside, phi_q_LD * phi_k_LD, 0.0), 1)[:, None] / n


@_tuned
@triton.jit
def output_kernel(
    q, k, v, out, kv, offsets, candidates, users, chunk_user, first_chunk,
    q_row, q_head, k_row, k_head, v_row, v_head, H: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    E: tl.constexpr, EP: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, PHI: tl.constexpr,
    PHI_OUT: tl.constexpr, TANH: tl.constexpr,
):  # fmt: skip
    """phi(Q) phi_out(Z) of one chunk; its candidates add their own term."""
    head, chunk = tl.program_id(0) % H, tl.program_id(0) // H
    user = tl.load(chunk_user + chunk)
    if user >= users:
        return
    first, chunk_sources, chunk_rows, _, sources, _ = _chunk(
        offsets, candidates, first_chunk, chunk, user, CHUNK
    )
    q += first * q_row + head * q_head
    k += first * k_row + head * k_head
    v += first * v_row + head * v_head
    out += (first * H + head) * E
    kv += (user * H + head) * (D * E)
    p_DE = _load_p(kv, D, DP, E, EP, PHI_OUT).to(q.dtype.element_ty)
    for start in range(0, chunk_sources, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        q_LD = _load(q, rows, chunk_sources, q_row, D, DP)
        phi_q_LD = _phi(q_LD.to(tl.float32), PHI, TANH)
        out_LE = tl.dot(phi_q_LD.to(q_LD.dtype), p_DE, input_precision="ieee")
        _store(out, out_LE, rows, chunk_sources, H * E, E, EP)
    n = tl.maximum(sources, 1).to(tl.float32)
    for start in range(chunk_sources, chunk_rows, SELF_BLOCK):
        rows = start + tl.arange(0, SELF_BLOCK)
        q_LD = _load(q, rows, chunk_rows, q_row, D, DP)
        k_LD = _load(k, rows, chunk_rows, k_row, D, DP)
        v_LE = _load(v, rows, chunk_rows, v_row, E, EP)
        phi_q_LD = _phi(q_LD.to(tl.float32), PHI, TANH)
        phi_k_LD = _phi(k_LD.to(tl.float32), PHI, TANH)
        out_LE = tl.dot(phi_q_LD.to(q_LD.dtype), p_DE, input_precision="ieee")
        out_LE += _self_weight(phi_q_LD, phi_k_LD, n, D, DP) * v_LE.to(tl.float32)
        _store(out, out_LE, rows, chunk_rows, H * E, E, EP)


@_tuned
@triton.jit
def query_backward_kernel(
    d_out, q, k, v, kv, dq, dk, dv, g, parts, offsets, candidates, users, chunk_user, first_chunk, first_part,
    d_out_row, d_out_head, q_row, q_head, k_row, k_head, v_row, v_head, H: tl.constexpr, D: tl.constexpr,
    DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    PHI: tl.constexpr, PHI_OUT: tl.constexpr, TANH: tl.constexpr,
):  # fmt: skip
    """dQ of one chunk and its part of W; dK and dV of its candidates. A user's only chunk turns W into G."""
    head, chunk = tl.program_id(0) % H, tl.program_id(0) // H
    user = tl.load(chunk_user + chunk)
    if user >= users:
        return
    first, chunk_sources, chunk_rows, number, sources, all_rows = _chunk(
        offsets, candidates, first_chunk, chunk, user, CHUNK
    )
    d_out += first * d_out_row + head * d_out_head
    q += first * q_row + head * q_head
    k += first * k_row + head * k_head
    v += first * v_row + head * v_head
    dq += (first * H + head) * D
    dk += (first * H + head) * D
    dv += (first * H + head) * E
    kv += (user * H + head) * (D * E)
    p_ED = tl.trans(_load_p(kv, D, DP, E, EP, PHI_OUT).to(q.dtype.element_ty))
    w_DE = tl.zeros((DP, EP), tl.float32)
    for start in range(0, chunk_sources, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        q_LD = _load(q, rows, chunk_sources, q_row, D, DP)
        d_out_LE = _load(d_out, rows, chunk_sources, d_out_row, E, EP)
        wide_q_LD = q_LD.to(tl.float32)
        phi_q_LD = _phi(wide_q_LD, PHI, TANH)
        w_DE = tl.dot(tl.trans(phi_q_LD.to(q_LD.dtype)), d_out_LE, w_DE, input_precision="ieee")
        d_phi_q_LD = tl.dot(d_out_LE, p_ED, input_precision="ieee")
        _store(dq, d_phi_q_LD * _slope(wide_q_LD, PHI, TANH), rows, chunk_sources, H * D, D, DP)
    n = tl.maximum(sources, 1).to(tl.float32)
    for start in range(chunk_sources, chunk_rows, SELF_BLOCK):
        rows = start + tl.arange(0, SELF_BLOCK)
        q_LD = _load(q, rows, chunk_rows, q_row, D, DP)
        d_out_LE = _load(d_out, rows, chunk_rows, d_out_row, E, EP)
        wide_q_LD = q_LD.to(tl.float32)
        wide_k_LD = _load(k, rows, chunk_rows, k_row, D, DP).to(tl.float32)
        v_LE = _load(v, rows, chunk_rows, v_row, E, EP).to(tl.float32)
        phi_q_LD = _phi(wide_q_LD, PHI, TANH)
        phi_k_LD = _phi(wide_k_LD, PHI, TANH)
        x_L1 = tl.sum(d_out_LE.to(tl.float32) * v_LE, 1)[:, None] / n
        w_DE = tl.dot(tl.trans(phi_q_LD.to(q_LD.dtype)), d_out_LE, w_DE, input_precision="ieee")
        d_phi_q_LD = tl.dot(d_out_LE, p_ED, input_precision="ieee") + x_L1 * phi_k_LD
        _store(dq, d_phi_q_LD * _slope(wide_q_LD, PHI, TANH), rows, chunk_rows, H * D, D, DP)
        dk_LD = x_L1 * phi_q_LD * _slope(wide_k_LD, PHI, TANH)
        _store(dk, dk_LD, rows, chunk_rows, H * D, D, DP)
        dv_LE = _self_weight(phi_q_LD, phi_k_LD, n, D, DP) * d_out_LE.to(tl.float32)
        _store(dv, dv_LE, rows, chunk_rows, H * E, E, EP)
    at, inside = _state_tile(D, DP, E, EP)
    if all_rows <= CHUNK:
        z_DE = tl.load(kv + at, mask=inside, other=0.0)
        g_DE = w_DE * _slope(z_DE, PHI_OUT, False) / n
        tl.store(g + (user * H + head) * (D * E) + at, g_DE, mask=inside)
    else:
        part = tl.load(first_part + user) + number
        tl.store(parts + (part * H + head) * (D * E) + at, w_DE, mask=inside)


@_tuned
@triton.jit
def source_backward_kernel(
    k, v, g, dk, dv, offsets, candidates, users, chunk_user, first_chunk,
    k_row, k_head, v_row, v_head, H: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr,
    EP: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, PHI: tl.constexpr, TANH: tl.constexpr,
    ZERO_CANDIDATES: tl.constexpr,
):  # fmt: skip
    """dK and dV of one chunk's sources from G."""
    head, chunk = tl.program_id(0) % H, tl.program_id(0) // H
    user = tl.load(chunk_user + chunk)
    if user >= users:
        return
    first, chunk_sources, chunk_rows, _, _, _ = _chunk(offsets, candidates, first_chunk, chunk, user, CHUNK)
    k += first * k_row + head * k_head
    v += first * v_row + head * v_head
    dk += (first * H + head) * D
    dv += (first * H + head) * E
    at, inside = _state_tile(D, DP, E, EP)
    wide_g_DE = tl.load(g + (user * H + head) * (D * E) + at, mask=inside, other=0.0)
    g_DE = wide_g_DE.to(k.dtype.element_ty)
    g_ED = tl.trans(g_DE)
    for start in range(0, chunk_sources, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        k_LD = _load(k, rows, chunk_sources, k_row, D, DP)
        v_LE = _load(v, rows, chunk_sources, v_row, E, EP)
        wide_k_LD = k_LD.to(tl.float32)
        d_phi_k_LD = tl.dot(v_LE, g_ED, input_precision="ieee")
        _store(dk, d_phi_k_LD * _slope(wide_k_LD, PHI, TANH), rows, chunk_sources, H * D, D, DP)
        phi_k_LD = _phi(wide_k_LD, PHI, TANH).to(k_LD.dtype)
        dv_LE = tl.dot(phi_k_LD, g_DE, input_precision="ieee")
        _store(dv, dv_LE, rows, chunk_sources, H * E, E, EP)
    if ZERO_CANDIDATES:
        for start in range(chunk_sources, chunk_rows, BLOCK):
            rows = start + tl.arange(0, BLOCK)
            _store(dk, tl.zeros((BLOCK, DP), tl.float32), rows, chunk_rows, H * D, D, DP)
            _store(dv, tl.zeros((BLOCK, EP), tl.float32), rows, chunk_rows, H * E, E, EP)
