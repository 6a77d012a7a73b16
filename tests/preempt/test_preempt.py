"""Who hears a signal, when it ends the run at once and when it waits, and what is left as it was."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from alignment import preempt


@pytest.mark.parametrize("number", preempt.SIGNALS)
def test_with_nothing_to_lose_a_run_ends_at_once_and_handlers_come_back(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in preempt.SIGNALS]
    with preempt.listening(), pytest.raises(preempt.Preempted, match=f"^stopped by {number.name}$"):
        os.kill(os.getpid(), number)
    assert [signal.getsignal(each) for each in preempt.SIGNALS] == before
    assert not preempt.requested()


def test_from_hold_to_the_end_of_the_run_a_signal_is_only_noted(capfd: pytest.CaptureFixture[str]) -> None:
    """And said at once, with the step that it waits for, by the one process that speaks."""
    with preempt.listening():
        with preempt.one_run():
            preempt.hold()
            preempt.at_step(7)
            assert not preempt.requested()
            os.kill(os.getpid(), signal.SIGUSR1)
            assert capfd.readouterr().err == "\nalignment: heard SIGUSR1: finishing step 7, then saving\n"
            os.kill(os.getpid(), signal.SIGTERM)
            assert preempt.requested() and preempt.reason() == "stopped by SIGUSR1"
        with pytest.raises(preempt.Preempted), preempt.one_run():
            pytest.fail("the next run has started")


@pytest.fixture
def terminal() -> Iterator[None]:
    """SIGINT as it is where the command is not in a shell's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_user_s_first_interruption_waits_as_well_and_the_second_does_not(
    terminal: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with preempt.listening(), preempt.one_run():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert not preempt.requested(), "there was nothing to save"
        preempt.hold()
        os.kill(os.getpid(), signal.SIGINT)
        assert preempt.requested() and preempt.reason() == "stopped by SIGINT"
        assert (preempt.exit_code(), preempt.requeued()) == (130, "")
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    line = "alignment: heard SIGINT: finishing the step, then saving; Ctrl-C again stops at once\n"
    assert capfd.readouterr().err.count(line) == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_after_a_scheduler_s_signal_a_user_need_not_interrupt_twice(terminal: None) -> None:
    with preempt.listening(), preempt.one_run():
        preempt.hold()
        os.kill(os.getpid(), signal.SIGTERM)
        assert preempt.exit_code() == preempt.EXIT_CODE
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_in_a_shell_s_background_an_interruption_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with preempt.listening(), preempt.one_run():
            os.kill(os.getpid(), signal.SIGINT)
            assert not preempt.requested()
    finally:
        signal.signal(signal.SIGINT, before)


def test_each_run_of_a_command_starts_with_nothing_to_lose() -> None:
    with preempt.listening():
        with preempt.one_run():
            preempt.hold()
        with preempt.one_run(), pytest.raises(preempt.Preempted):
            os.kill(os.getpid(), signal.SIGTERM)


def test_one_of_several_processes_waits_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would leave them in a collective that it never joins."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with preempt.listening(), preempt.one_run():
        os.kill(os.getpid(), signal.SIGTERM)
        assert preempt.requested()


def test_no_library_can_swallow_it() -> None:
    assert not issubclass(preempt.Preempted, Exception)


def test_a_thread_that_gets_no_signals_changes_none() -> None:
    before = signal.getsignal(signal.SIGTERM)
    inside = []

    def work() -> None:
        with preempt.listening():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]


class _Asks:
    """A field in whose naming the signal is heard, as a library's classes have them."""

    def __set_name__(self, owner: type, name: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("wraps", [False, True])
def test_a_signal_that_is_heard_while_a_library_is_imported_is_no_error_of_its_own(wraps: bool) -> None:
    def imported() -> None:
        try:
            type("Config", (), {"field": _Asks()})
        except RuntimeError as error:
            if not wraps:
                raise
            raise ModuleNotFoundError("could not import Config") from error

    with preempt.listening(), pytest.raises(preempt.Preempted, match=r"^stopped by SIGTERM$"), preempt.one_run():
        imported()


def test_an_error_that_is_no_signal_goes_its_way() -> None:
    with preempt.listening(), pytest.raises(RuntimeError, match=r"^b$") as caught, preempt.one_run():
        raise RuntimeError("b") from ValueError("a")
    assert isinstance(caught.value.__cause__, ValueError)
