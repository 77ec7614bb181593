"""What all tests share: several devices, a cache of compiled programs, and how hard the compiler tries.

Most of a test's time is compilation. Programs are kept on disk, in pytest's cache, across tests, workers and runs. They
are compiled with few optimisations, which halves the time and changes results by rounding: sums are taken in another
order, and a product and a sum are rounded apart. Tests marked `optimised` (they look at memory or what the compiler
made, or run for long) run programs as users do; with `--optimised` those marked `bits` do too.
"""

import gc
import importlib
import shutil
from pathlib import Path

import jax
import pytest
from compiling import compile_quickly

LIBRARIES = "arviz blackjax flowjax.flows matplotlib.figure numpyro.distributions optax pydantic"
MOST_KEPT = 2**31  # bytes of compiled programs
MAPS, MOST_MAPPED = Path("/proc/self/maps"), 45_000
QUICKLY = pytest.StashKey[bool]()


def pytest_addoption(parser):
    parser.addoption("--optimised", action="store_true", help="compile what is marked `bits` as users do")


def pytest_configure(config):
    jax.config.update("jax_num_cpu_devices", 8)  # several, for those tests that divide a program
    gc.set_threshold(100_000, 50, 100)  # tracing makes many small objects, of which few are garbage
    for name in LIBRARIES.split():  # what jaxtyping's import of `calibrant` imports does not find its bytecode
        importlib.import_module(name)
    if (cache := getattr(config, "cache", None)) is None:
        return
    programs = Path(cache.mkdir("programs"))
    if not hasattr(config, "workerinput") and sum(file.stat().st_size for file in programs.iterdir()) > MOST_KEPT:
        shutil.rmtree(programs)
    jax.config.update("jax_compilation_cache_dir", str(programs))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def as_users_do(item):
    bits = item.config.getoption("--optimised") and item.get_closest_marker("bits")
    return bool(bits or item.get_closest_marker("optimised"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    quickly = not as_users_do(item)
    if item.config.stash.get(QUICKLY, False) != quickly:
        item.config.stash[QUICKLY] = quickly
        compile_quickly(quickly)


def pytest_runtest_teardown(item):
    # A program takes a thousand areas of memory, and Linux allows a process 65,530. JAX dies where it gets no more.
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPPED:
        compile_quickly(item.config.stash[QUICKLY])
        gc.collect()


def pytest_collection_modifyitems(items):
    # First those that are marked, so that a worker changes from one kind to the other once.
    items.sort(key=as_users_do, reverse=True)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty directory, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
