import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)  # several, for those tests that divide a program


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True, scope="module")
def _clear_caches():
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def unoptimised():
    """Programs are compiled in half the time, and run slower: for tests of what is around them."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty directory, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
