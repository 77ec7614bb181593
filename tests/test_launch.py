import pytest

from calibrant_launch import reproducible


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        pytest.param(None, "--xla_gpu_deterministic_ops=true", id="nothing said"),
        pytest.param("--xla_a=1", "--xla_a=1 --xla_gpu_deterministic_ops=true", id="something else said"),
        pytest.param("--xla_gpu_deterministic_ops=false", "--xla_gpu_deterministic_ops=false", id="the contrary said"),
        pytest.param(*["--xla_a=1 --xla_gpu_exclude_nondeterministic_ops=true"] * 2, id="said by another flag"),
    ],
)
def test_a_gpu_is_asked_for_the_same_bits_unless_the_user_said_something(said, expected):
    environment = {} if said is None else {"XLA_FLAGS": said}
    reproducible(environment)
    assert environment == {"XLA_FLAGS": expected}
