"""The cache of freed CPU memory, under torch's own operators."""

import copy
import os
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import torch
from torch import nn

from d2lfast import memory

MIB = 1 << 20


@pytest.fixture(autouse=True)
def disabled_afterwards():
    memory.disable()
    yield
    memory.disable()


@pytest.fixture
def cached():
    memory.enable(512 * MIB)


def script(code, **environment):
    """Run code in a fresh process; it must end well."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_not_enabled_on_import():
    out = script("""
        import d2lfast, d2lfast.memory, torch
        torch.zeros(1 << 22)
        print(d2lfast.memory.stats())
    """)
    assert "enabled=False" in out
    assert "requests=0" in out


def test_a_freed_block_is_used_again(cached):
    x = torch.ones(3 * MIB)
    address, before = x.data_ptr(), memory.stats()
    del x
    after = memory.stats()
    assert after.cached_bytes - before.cached_bytes >= 12 * MIB
    assert before.allocated_bytes - after.allocated_bytes >= 12 * MIB
    assert torch.empty(3 * MIB).data_ptr() == address
    assert memory.stats().hits > after.hits
    assert address % 4096 == 0


def test_small_tensors_are_left_to_malloc(cached):
    before = memory.stats().requests
    small = torch.empty(memory.MIN_BYTES // 4 - 1)
    assert memory.stats().requests == before
    large = torch.empty(memory.MIN_BYTES // 4)
    assert memory.stats().requests == before + 1
    del small, large
    memory.enable(min_bytes=1024)
    _ = torch.empty(256)
    assert memory.stats().requests == before + 2
    assert torch.empty(0).numel() == 0


def test_the_bound_is_kept():
    memory.enable(8 * MIB)
    tensors = [torch.ones(MIB) for _ in range(10)]
    del tensors
    assert memory.stats().cached_bytes <= 8 * MIB
    memory.enable(0)
    assert memory.stats().cached_bytes == 0
    assert torch.ones(MIB).sum() == MIB


def test_empty_cache(cached):
    x = torch.ones(5 * MIB)
    del x
    released = memory.stats().released_bytes
    memory.empty_cache()
    stats = memory.stats()
    assert stats.cached_bytes == 0
    assert stats.released_bytes >= released + 20 * MIB
    assert stats.enabled


def test_peak(cached):
    memory.reset_peak()
    before = memory.stats().peak_allocated_bytes
    assert before == memory.stats().allocated_bytes
    x, y = torch.ones(MIB), torch.ones(MIB)
    del x
    assert memory.stats().peak_allocated_bytes - before == 8 * MIB
    memory.reset_peak()
    assert memory.stats().peak_allocated_bytes - before == 4 * MIB
    assert y.sum() == MIB


def test_disabled_with_live_tensors(cached):
    x, y = torch.arange(2 * MIB), torch.ones(MIB)
    del y
    memory.disable()
    stats = memory.stats()
    assert not stats.enabled
    assert stats.cached_bytes == 0
    assert stats.allocated_bytes >= 16 * MIB
    assert torch.equal(x, torch.arange(2 * MIB))
    z = x + 1  # from malloc
    assert memory.stats().requests == stats.requests
    del x
    assert memory.stats().allocated_bytes <= stats.allocated_bytes - 16 * MIB
    assert memory.stats().cached_bytes == 0
    memory.enable()
    assert torch.equal(z, torch.arange(1, 2 * MIB + 1))


def test_blocks_of_onednn_outlive_the_switch():
    """oneDNN frees by the allocator that is registered then, not by the one it allocated with."""
    x = torch.randn(4, 16, 96, 96)
    conv = nn.Conv2d(16, 16, 3)
    with torch.no_grad():
        for first, second in ((memory.disable, memory.enable), (memory.enable, memory.disable)):
            first()
            packed = x.to_mkldnn()
            second()
            assert torch.equal(packed.to_dense(), x)
            del packed
            conv(x)


def test_context_managers_nest():
    with memory.enabled(8 * MIB):
        assert memory.stats().enabled
        with memory.enabled(0, min_bytes=1):
            x = torch.ones(MIB)
            del x
            assert memory.stats().cached_bytes == 0
        x = torch.ones(MIB)
        del x
        assert memory.stats().cached_bytes >= 4 * MIB
    assert not memory.stats().enabled
    with pytest.raises(KeyError), memory.enabled():
        raise KeyError
    assert not memory.stats().enabled


@pytest.mark.parametrize("arguments", [{"max_cached_bytes": -1}, {"min_bytes": -1}])
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match="must not be negative"):
        memory.enable(**arguments)
    assert not memory.stats().enabled


def test_uninitialised_memory_is_poisoned(cached):
    x = torch.ones(MIB)
    del x
    torch.use_deterministic_algorithms(True)
    assert torch.empty(MIB).isnan().all()
    assert (torch.empty(MIB, dtype=torch.int64) == torch.iinfo(torch.int64).max).all()


def test_storages_that_change(cached):
    x = torch.arange(MIB)
    x.resize_(2 * MIB)
    assert torch.equal(x[:MIB], torch.arange(MIB))
    array = x.numpy()
    del x
    assert np.array_equal(array[:MIB], np.arange(MIB))
    y = torch.from_numpy(array)
    twin = copy.deepcopy(y)
    shared = y.clone().share_memory_()
    assert torch.equal(twin, y)
    assert torch.equal(shared, y)
    lazily = torch._lazy_clone(twin)
    lazily += 1
    assert torch.equal(twin, y)


def train(steps=3):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(7)
    )
    x, y = torch.randn(16, 3, 40, 40), torch.randint(7, (16,))
    net(x)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_training_is_the_same():
    expected = train()
    with memory.enabled():
        assert torch.equal(train(), expected)
        assert torch.equal(train(), expected)
    assert memory.stats().hits > 0


def test_many_threads(cached):
    errors = []

    def work(number):
        generator = torch.Generator().manual_seed(number)
        held = []
        for i in range(60):
            size = int(torch.randint(1, MIB, (), generator=generator))
            held.append((torch.full((size,), number * 1000 + i), number * 1000 + i))
            if len(held) > 4:
                tensor, value = held.pop(i % 4)
                if not bool((tensor == value).all()):
                    errors.append((number, i))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_profiler_sees_the_blocks(cached):
    with torch.profiler.profile(profile_memory=True) as profile:
        x = torch.empty(MIB)
        del x
    sizes = [
        event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    assert 4 * MIB in sizes
    assert -4 * MIB in sizes


def test_fork():
    script("""
        import os, torch, d2lfast.memory as memory
        memory.enable()
        kept, freed = torch.arange(1 << 20), torch.ones(1 << 20)
        del freed
        child = os.fork()
        if child == 0:
            good = memory.stats().cached_bytes == 0 and torch.equal(kept, torch.arange(1 << 20))
            kept += 1
            good = good and int(torch.ones(1 << 21).sum()) == 1 << 21
            del kept
            os._exit(0 if good else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert torch.equal(kept, torch.arange(1 << 20))
        assert memory.stats().cached_bytes > 0
    """)


@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_of_a_data_loader(method, workers, tmp_path):
    (tmp_path / "loading.py").write_text(
        textwrap.dedent("""
        import sys, torch, d2lfast.memory as memory

        class Images(torch.utils.data.Dataset):
            def __len__(self):
                return 12

            def __getitem__(self, index):
                return torch.full((1 << 18,), float(index)) + torch.zeros(1 << 18)

        if __name__ == "__main__":
            memory.enable()
            x = torch.ones(1 << 20)
            del x
            loader = torch.utils.data.DataLoader(
                Images(), batch_size=4, num_workers=int(sys.argv[2]), multiprocessing_context=sys.argv[1]
            )
            for _ in range(int(sys.argv[2])):
                means = [batch.mean(1) for batch in loader]
                assert torch.equal(torch.cat(means), torch.arange(12.0)), means
        """)
    )
    script(f"""
        import runpy, sys
        sys.argv = ["loading.py", "{method}", "{workers}"]
        sys.path.insert(0, {str(tmp_path)!r})
        runpy.run_path({str(tmp_path / "loading.py")!r}, run_name="__main__")
    """)


def test_without_memory_the_cache_is_given_back_and_torch_raises():
    script("""
        import resource, torch, d2lfast.memory as memory
        memory.enable(min_bytes=1 << 20)
        block = torch.empty(1 << 28)
        del block
        assert memory.stats().mapped_bytes >= 1 << 30
        pages = int(open("/proc/self/statm").read().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + (64 << 20), -1))
        larger = torch.empty((1 << 28) + (1 << 22))  # fits only where the cached block was
        assert memory.stats().cached_bytes == 0
        for bytes in (1 << 31, 1 << 50):
            try:
                torch.empty(bytes, dtype=torch.uint8)
            except RuntimeError as error:
                assert "allocate memory" in str(error), error
            else:
                raise AssertionError("there was memory")
        del larger
        # What malloc cannot serve is served once the cache has let go.
        assert memory.stats().cached_bytes >= 1 << 30
        memory.enable(min_bytes=1 << 40)
        assert torch.empty(1 << 30, dtype=torch.uint8).numel() == 1 << 30
        assert memory.stats().cached_bytes == 0
    """)


def test_the_command_line_enables_it():
    from typer.testing import CliRunner

    from d2lfast.commands import app

    for arguments, enabled in ((["--no-cache-memory", "info"], False), (["info"], True)):
        assert CliRunner().invoke(app, arguments).exit_code == 0
        assert memory.stats().enabled is enabled
