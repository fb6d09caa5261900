"""Latencies on a GPU, taken by turns in one process, and where the time goes."""

from __future__ import annotations

import contextlib
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch.autograd import DeviceType

Call = Callable[[], torch.Tensor]

#: Share of the time -> words in a kernel's name, lower case; the first entry that fits counts. Own kernels of
#: GroupNorm are norm_moments, norm_factors and norm_apply.
KINDS = (
    ("integer products", ("product_kernel", "finish_kernel", "window_sums")),
    ("encode", ("_encode",)),
    ("attention", ("flash", "fmha", "sdpa", "softmax", "attention")),
    ("norms", ("norm", "rowwisemoments", "computefusedparams")),
    ("convolutions and matrix products", ("gemm", "conv", "cutlass", "nvjet", "cudnn", "xmma", "splitk", "gemv")),
    ("copies", ("copy", "memcpy", "memset", "transpose", "nchwtonhwc", "nhwctonchw", "cat")),
    ("other elementwise", ("",)),
)


@dataclass
class Deadline:
    """A time limit for everything together.

    Attributes:
        seconds: from when it is made.
    """

    seconds: float
    started: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Seconds that are left; negative when it is over."""
        return self.started + self.seconds - time.monotonic()

    @contextlib.contextmanager
    def within(self, reserve: float) -> Iterator[None]:
        """Context that is interrupted when only `reserve` seconds are left.

        Raises:
            TimeoutError: in the code inside.
        """
        allowed = self.left() - reserve
        if allowed <= 0:
            raise TimeoutError("no time left for it (--limit)")

        def interrupt(*_: object) -> None:
            raise TimeoutError(f"not ready after {allowed:.0f} s (--limit)")

        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, allowed)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Context in which float32 products do, or do not, go through TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def warmed_up(call: Call, times: int = 3) -> float:
    """Call `times` times; seconds of the first call, in which kernels are compiled or chosen."""
    started = time.monotonic()
    call()
    torch.cuda.synchronize()
    first = time.monotonic() - started
    for _ in range(times - 1):
        call()
    torch.cuda.synchronize()
    return first


def graphed(call: Call) -> Call:
    """`call` as a recorded CUDA graph: the same kernels without Python in between. It was called before."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # capture wants its libraries' work spaces on a stream of its own
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> torch.Tensor:
        graph.replay()
        return result

    return replay


def milliseconds(call: Call) -> float:
    """Time of one call on the GPU, from an idle one until the last kernel has ended."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    call()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last)


def by_turns(calls: dict[str, Call], rounds: int, deadline: Deadline) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Let all calls take turns; rounds for which no time is left are not begun, and who fails once is out.

    Args:
        calls: name -> call; those that fail are removed.

    Returns:
        Milliseconds of every call, round by round, and the reasons of those that failed.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    failed = {}
    longest = 0.0
    for _ in range(rounds):
        if deadline.left() <= longest:
            break
        started = time.monotonic()
        for name in list(calls):
            try:
                found[name].append(milliseconds(calls[name]))
            except Exception as error:  # the others go on
                failed[name] = reason(error)
                del calls[name], found[name]
        longest = max(longest, time.monotonic() - started)
    return found, failed


def reason(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"


def ratio(others: Sequence[float], own: Sequence[float]) -> float | None:
    """Median over rounds of the others' time divided by this one's: above 1 is faster; None without a round."""
    pairs = list(zip(others, own, strict=False))
    return round(statistics.median(other / mine for other, mine in pairs), 3) if pairs else None


def peak_mib(call: Call) -> float:
    """How far one call raises the GPU memory in use at its highest."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def breakdown(call: Call, top: int = 12) -> dict[str, object]:
    """GPU milliseconds of one call by kind of kernel, and of the `top` kernels with their counts."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    rows = [row for row in profile.key_averages() if row.device_type == DeviceType.CUDA]
    spent = sorted(((row.self_device_time_total / 1000, row.count, row.key) for row in rows), reverse=True)
    kinds = {kind: 0.0 for kind, _ in KINDS}
    for duration, _, name in spent:
        kinds[kind_of(name)] += duration
    total = sum(kinds.values())
    return {
        "ms": round(total, 3),
        "kernels": sum(count for _, count, _ in spent),
        "share": {kind: round(part / total, 4) for kind, part in kinds.items()} if total else {},
        "top": [{"kernel": name[:120], "ms": round(ms, 3), "calls": count} for ms, count, name in spent[:top]],
    }


def kind_of(kernel: str) -> str:
    """Which of KINDS a kernel belongs to."""
    return next(kind for kind, words in KINDS if any(word in kernel.lower() for word in words))
