"""Calls from several threads, several models in one process, processes that fork or write one cache at once; and,
marked `gpu`, streams and a GPU that is shared with other work."""

from __future__ import annotations

import copy
import multiprocessing
import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import holdfast
from holdfast.autotune import store, tried
from holdfast.autotune.identity import fingerprint, key_of
from holdfast.autotune.pin import kernels_where_they_can
from holdfast.autotune.tried import Outcome, Question, settle
from holdfast.kernels.config import Config
from holdfast.kernels.interpreter import interpret
from holdfast.kernels.problem import Problem
from holdfast.kernels.resources import H100

CPU = torch.device("cpu")
SMALL = Config("cooperative", 16, 16, 64)
AT_ONCE = 4


def together(work, count=AT_ONCE):
    """What `work(k)` returns in threads that begin at the same moment; an exception of any is raised."""
    barrier = threading.Barrier(count)

    def begun(k):
        torch.set_num_threads(1)
        barrier.wait()
        return work(k)

    with ThreadPoolExecutor(count) as pool:
        return [done.result() for done in [pool.submit(begun, k) for k in range(count)]]


def models():
    torch.manual_seed(0)
    made = [
        holdfast.RNN(5, 12),
        holdfast.GRU(5, 12, bidirectional=True),
        holdfast.LSTM(5, 12, num_layers=2),
        holdfast.GRU(5, 12, reset_after=False),
    ]
    return [(module, torch.randn(7, 3, 5)) for module in made]


def gradients(module, x, **options):
    """Of a module of its own, as gradients of threads would add up in one."""
    module = copy.deepcopy(module)
    y, _ = module(x, **options)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), list(module.parameters()))]


def equal(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# Threads.


def test_threads_on_torchs_op_compute_what_one_computes():
    each = models()
    options = [{}, {"lengths": [7, 2, 0]}, {"resets": torch.rand(7, 3) < 0.3}, {}]
    expected = [gradients(*one, **more) for one, more in zip(each, options, strict=True)]
    for _ in range(5):
        for found, right in zip(together(lambda k: gradients(*each[k], **options[k])), expected, strict=True):
            assert equal(found, right)


def test_threads_share_a_module():
    module, x = models()[2]
    expected, _ = module(x)
    for found, _ in together(lambda k: module(x)):
        assert found.equal(expected)


def test_threads_in_the_interpreter_compute_what_one_computes():
    each = models()

    def interpreted(k):
        module, x = each[k]
        with interpret(seed=k), kernels_where_they_can(), holdfast.backend("triton"), torch.no_grad():
            return module(x[:2])[0]

    expected = [interpreted(k) for k in range(AT_ONCE)]
    for found, right in zip(together(interpreted), expected, strict=True):
        assert found.equal(right)


def test_threads_that_need_one_kernel_try_it_once(monkeypatch, tmp_path):
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path))
    monkeypatch.setattr(tried, "_settled", {})
    question = Question(Problem("gru", torch.float32, 16, 1), SMALL, "nothing", ())
    begun, go = [], threading.Event()

    def run():
        begun.append(threading.get_ident())
        go.wait(0.2)
        return Outcome("", {})

    together(lambda k: settle(question, CPU, H100, run))
    assert len(begun) == 1


def test_a_setting_belongs_to_its_thread():
    def mine(k):
        with holdfast.backend("eager" if k % 2 else "triton"), holdfast.first_use("off" if k % 2 else "always"):
            return holdfast.current_backend(), holdfast.first_use.current()

    assert together(mine) == [("triton", "always"), ("eager", "off")] * 2
    assert (holdfast.current_backend(), holdfast.first_use.current()) == ("auto", "first")


# Several models.


def test_models_whose_passes_are_interleaved_do_not_disturb_each_other():
    each = models()[:3]

    def run(order):
        with interpret(), kernels_where_they_can(), holdfast.backend("triton"):
            outputs = [module(x[:2])[0].square().sum() for module, x in each]
            found = {k: torch.autograd.grad(outputs[k], list(each[k][0].parameters())) for k in order}
        return [gradient for k in range(3) for gradient in found[k]]

    assert equal(run([2, 0, 1]), run([0, 1, 2]))


# Processes.


class Encoded(Dataset):
    """Every item goes through a layer in the worker."""

    def __init__(self, module):
        self.module, self.x = module, torch.arange(40.0).reshape(8, 5) / 40

    def __len__(self):
        return 8

    def __getitem__(self, index):
        with torch.no_grad():
            return self.module(self.x[index].reshape(1, 5))[0]


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.thorough)])
def test_workers_of_a_dataloader(context):
    module = models()[1][0]
    data = Encoded(module)
    with torch.no_grad():
        module(torch.zeros(2, 5))  # used before the fork
    expected = torch.stack([data[k] for k in range(8)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 of forks where threads are
        loader = DataLoader(data, batch_size=4, num_workers=2, multiprocessing_context=context)
        assert torch.cat(list(loader)).equal(expected)


def test_a_fork_after_use_computes_the_same():
    each = models()
    expected = [gradients(*one)[0] for one in each]
    with interpret(), kernels_where_they_can(), torch.no_grad():
        interpreted = each[0][0](each[0][1][:2])[0]
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        right = False
        try:
            right = all(gradients(*one)[0].equal(y) for one, y in zip(each, expected, strict=True))
            with interpret(), kernels_where_they_can(), torch.no_grad():
                right &= each[0][0](each[0][1][:2])[0].equal(interpreted)
        finally:
            os.write(write, b"1" if right else b"0")
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 1) == b"1"
    os.close(read), os.close(write)


def test_a_fork_while_a_kernel_is_tried_does_not_wait_for_it():
    """The lock of a thread that the child does not have."""
    held, release = threading.Event(), threading.Event()

    def hold():
        with tried._lock:
            held.set()
            release.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os._exit(0 if tried._lock.acquire(timeout=5) else 1)
    _, status = os.waitpid(child, 0)
    release.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 0


def _add(folder, number):
    os.environ["HOLDFAST_CACHE"] = folder
    kind = (f"kernel {number}",)
    tried._remember(Question(Problem("gru", torch.float32, 16, 1), SMALL, "nothing", kind), H100, "")


def test_processes_that_try_kernels_at_once_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=_add, args=(str(tmp_path), k)) for k in range(6)]
        for process in processes:
            process.start()
    for process in processes:
        process.join()
    found = tried.tried(Problem("gru", torch.float32, 16, 1), H100)
    assert {t.kind for t in found} == {(f"kernel {k}",) for k in range(6)}


def _tune(folder, us):
    problem = Problem("lstm", torch.bfloat16, 768, 16)
    config = Config("cooperative", 16, 16, 256, num_warps=4 if us > 50 else 8)
    timing = store.Timing(config, "nothing", "warm", False, us, us, us, 10, 512, 16, 168, 100_000, str(us))
    store.Store(folder).add(store.Entry(key_of(problem), fingerprint(problem, H100), None, (timing,)))


def test_two_processes_that_tune_one_problem_keep_both_results(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=_tune, args=(tmp_path, us)) for us in (100.0, 10.0)]
        for process in processes:
            process.start()
    for process in processes:
        process.join()
    problem = Problem("lstm", torch.bfloat16, 768, 16)
    found = store.Store(tmp_path).load(key_of(problem), fingerprint(problem, H100))
    assert len(found.timings) == 2
    assert found.best("nothing").p50_us == 10.0


# On a GPU.


@pytest.fixture
def on_a_gpu():
    before = torch.backends.cudnn.rnn.fp32_precision
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    torch.manual_seed(0)
    yield
    torch.backends.cudnn.rnn.fp32_precision = before


def teams(hidden=256):
    """A layer of a team of programs, and what torch's op makes of a call."""
    module, x = holdfast.LSTM(32, hidden).cuda(), torch.randn(200, 16, 32, device="cuda")
    with holdfast.backend("eager"), torch.no_grad():
        return module, x, module(x)[0]


@pytest.mark.gpu
def test_streams_at_once(on_a_gpu):
    """Cooperative kernels of two streams: neither waits for programs that the other keeps from starting."""
    each = [teams() for _ in range(2)]
    streams = [torch.cuda.Stream() for _ in each]
    torch.cuda.synchronize()
    found = [[], []]
    with torch.no_grad():
        for _ in range(20):
            for k, (module, x, _) in enumerate(each):
                with torch.cuda.stream(streams[k]):
                    found[k].append(module(x)[0])
    torch.cuda.synchronize()
    holdfast.check_stalled()
    for of_stream, (_, _, expected) in zip(found, each, strict=True):
        for y in of_stream:
            assert y.equal(of_stream[0])
            torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
def test_threads_with_streams_of_their_own(on_a_gpu):
    each = [teams(128 * (1 + k)) for k in range(AT_ONCE)]

    def run(k):
        module, x, expected = each[k]
        with torch.cuda.stream(torch.cuda.Stream()), kernels_where_they_can():
            found = [gradients(module, x) for _ in range(5)]
            torch.cuda.synchronize()
        assert all(equal(one, found[0]) for one in found)
        torch.testing.assert_close(found[0][0], expected, atol=1e-4, rtol=1e-4)

    together(run)
    holdfast.check_stalled()


@pytest.mark.gpu
def test_a_gpu_that_other_work_fills(on_a_gpu):
    """Products on another stream hold every SM now and then: a team waits for its members and goes on."""
    module, x, expected = teams()
    other, a = torch.cuda.Stream(), torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    torch.cuda.synchronize()
    with torch.no_grad():
        for _ in range(10):
            with torch.cuda.stream(other):
                for _ in range(5):
                    a = (a @ a).clamp(-1, 1)
            y, _ = module(x)
            torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)
    torch.cuda.synchronize()
    holdfast.check_stalled()


@pytest.mark.gpu
def test_models_of_one_process_on_a_gpu(on_a_gpu):
    each = [teams(hidden) for hidden in (64, 256, 512)]
    with kernels_where_they_can():
        alone = [gradients(module, x) for module, x, _ in each]
        outputs = [module(x)[0].square().sum() for module, x, _ in each]
        for k in (2, 0, 1):
            found = torch.autograd.grad(outputs[k], list(each[k][0].parameters()))
            assert equal(found, alone[k][1:])
