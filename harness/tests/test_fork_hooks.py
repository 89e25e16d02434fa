import os

from mainbox_harness.fork_hooks import ForkHooks


def test_what_a_worker_must_call_is_recorded_and_what_python_does_for_threads_is_not() -> None:
    original = os.register_at_fork
    with ForkHooks() as hooks:
        assert os.register_at_fork != original
        os.register_at_fork(after_in_child=print)
        exec("import os; os.register_at_fork(after_in_child=len)", {"__name__": "random"})
    assert os.register_at_fork == original
    assert hooks.in_child == [print]
    assert hooks.around == []


def test_a_module_that_wants_to_be_called_in_the_zygote_is_named() -> None:
    with ForkHooks() as hooks:
        exec("import os; os.register_at_fork(before=list, after_in_parent=list)", {"__name__": "grpc"})
    assert (hooks.in_child, hooks.around) == ([], ["grpc"])
