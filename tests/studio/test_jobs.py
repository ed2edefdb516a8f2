"""Jobs run one after the other, report, and end when they are stopped."""

import threading
import time

import pytest

import realcustom_jax as rc
from realcustom_jax.studio import jobs as jobs_module
from realcustom_jax.studio.jobs import Jobs, Report, Stopped, Update


def steps(report: Report, count: int = 3, log: list | None = None, pause: float = 0.0) -> int:
    for k in range(1, count + 1):
        report.progress("sampling", k, count)
        if log is not None:
            log.append(k)
        time.sleep(pause)
    return count


def test_work_reports_and_returns_its_result():
    run = Jobs().run("a", lambda report: steps(report, pause=0.05))
    updates = []
    with pytest.raises(StopIteration) as end:
        while True:
            updates.append(next(run))
    assert end.value.value == 3
    assert updates[0] == Update("sampling: step 1 of 3", 1 / 3) and updates[-1].share == 1


def test_users_wait_in_the_order_in_which_they_came():
    jobs, order, begun = Jobs(), [], threading.Event()

    def first(report: Report) -> None:
        begun.set()
        steps(report, 10, pause=0.05)
        order.append("a")

    threads = [threading.Thread(target=jobs.finish, args=("a", first))]
    threads[0].start()
    begun.wait(5)
    for user in ("b", "c"):
        threads.append(
            threading.Thread(target=jobs.finish, args=(user, lambda report, u=user: order.append(u)))
        )
        threads[-1].start()
        time.sleep(0.05)
    waiting = jobs.run("d", lambda report: order.append("d"))
    assert next(waiting).text.startswith("waiting: ") and len(jobs) == 4
    with pytest.raises(StopIteration):
        while True:
            next(waiting)
    for thread in threads:
        thread.join()
    assert order == ["a", "b", "c", "d"] and len(jobs) == 0


@pytest.mark.parametrize("how", ["stop", "close"])
def test_stopped_work_ends_within_a_step_and_frees_its_place(how):
    jobs, log = Jobs(), []
    run = jobs.run("a", lambda report: steps(report, 1000, log, pause=0.01))
    next(run)
    if how == "stop":
        assert jobs.busy("a") and not jobs.stop("b") and jobs.stop("a")
        with pytest.raises(Stopped):
            while True:
                next(run)
    else:
        run.close()
    done = len(log)
    jobs.finish("b", lambda report: None)  # it gets its turn
    assert len(log) <= done + 2 and len(jobs) == 0


def test_waiting_work_can_be_stopped():
    jobs, release = Jobs(), threading.Event()
    first = threading.Thread(target=jobs.finish, args=("a", lambda report: release.wait(10)))
    first.start()
    run = jobs.run("b", lambda report: pytest.fail("it ran"))
    next(run)
    jobs.stop("b")
    with pytest.raises(Stopped):
        while True:
            next(run)
    release.set()
    first.join()


def test_errors_reach_the_user_and_the_next_one_gets_a_turn():
    jobs = Jobs()

    def fail(report: Report) -> None:
        raise rc.UserError("wrong")

    with pytest.raises(rc.UserError, match="wrong"):
        jobs.finish("a", fail)
    assert jobs.finish("a", lambda report: 5) == 5


def test_too_many_jobs_are_refused(monkeypatch):
    monkeypatch.setattr(jobs_module, "MOST_JOBS", 1)
    jobs, release = Jobs(), threading.Event()
    first = threading.Thread(target=jobs.finish, args=("a", lambda report: release.wait(10)))
    first.start()
    while not jobs.busy("a"):
        time.sleep(0.01)
    with pytest.raises(rc.UserError, match="1 requests are waiting already"):
        jobs.finish("b", lambda report: None)
    release.set()
    first.join()
