"""Any order of events, where sequences are kept and reused as a whole."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from fake_executor import BACK, EOG, FakeMemory, answer
from fake_whole import StreamMemory, WholeExecutor, WholeMemory
from naiad.engine.base import CoreJob
from test_engine_machine import GREEDY, KNOWN, N_CTX, EngineMachine


class Conversations(EngineMachine):
    """Prompts that go on from earlier answers, which is what whole states are good for."""

    def __init__(self) -> None:
        super().__init__()
        self.talks = [KNOWN[i][: 30 + i] for i in range(3)]

    @rule(
        which=st.integers(0, 2),
        back=st.sampled_from([0, 0, 0, 1, 5, 25]),
        said=st.lists(st.integers(0, EOG - 1), max_size=6),
        n=st.integers(1, 12),
    )
    def turn(self, which: int, back: int, said: list[int], n: int) -> None:
        """The next turn, or an earlier one again with something else said."""
        prompt = self.talks[which][: len(self.talks[which]) - back] + said
        if not BACK < len(prompt) < N_CTX - n:
            return
        uid = len(self.want)
        self.want[uid] = answer(prompt, n)
        self.talks[which] = prompt + self.want[uid]
        self.add(CoreJob(uid, tuple(prompt), n, GREEDY))


class WholeMachine(Conversations):
    """A hybrid model in one pool of cells that is too small: states are put back and come again."""

    limits = {"can_cut": False, "host_cache_bytes": 9000}

    def make_memory(self) -> FakeMemory:
        return WholeMemory(self.n_cells)

    def make_executor(self) -> WholeExecutor:
        return WholeExecutor(memory=self.memory)


class StreamMachine(Conversations):
    """Streams apart: finished ones stay where they are."""

    n_cells = 900
    limits = {"kv_unified": False, "n_parked": 0, "host_cache_bytes": 9000}

    def make_memory(self) -> FakeMemory:
        return StreamMemory(self.n_cells, 3)

    def check_at_rest(self) -> None:
        """What is finished stays in its stream."""
        parked = self.core._prefix.parked
        assert self.memory.n_used == sum(len(p.tokens) for p in parked)


class ScarceStreamMachine(StreamMachine):
    """No state is kept outside the streams."""

    limits = StreamMachine.limits | {"host_cache_bytes": 0}


class WholeStreamMachine(StreamMachine):
    """A recurrent model in streams apart: nothing is cut and nothing in the way."""

    limits = StreamMachine.limits | {"can_cut": False}

    def make_memory(self) -> FakeMemory:
        return WholeMemory(self.n_cells)

    def make_executor(self) -> WholeExecutor:
        return WholeExecutor(memory=self.memory)


_SETTINGS = settings(
    max_examples=40,
    stateful_step_count=40,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
for machine in (WholeMachine, StreamMachine, ScarceStreamMachine, WholeStreamMachine):
    machine.TestCase.settings = _SETTINGS

TestWhole = WholeMachine.TestCase
TestStream = StreamMachine.TestCase
TestScarceStream = ScarceStreamMachine.TestCase
TestWholeStream = WholeStreamMachine.TestCase
