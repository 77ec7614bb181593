"""Whatever is wrong with what a user gives ends in one sentence: a refusal, and never a traceback."""

import fuzzing
import pytest
from commands import run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibrant import worlds
from calibrant._config import load_config

SEEDS = st.integers(0, 2**31)
#: What `calibrant` turns into one sentence and exit code 2.
REFUSALS = (ValueError, OSError)


def _write(folder, files):
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _refused(folder, seed):
    """Whether the case is refused; anything else than a refusal or a problem that can be calibrated is an error."""
    _write(folder, fuzzing.case(seed))
    try:
        config, directory, _ = load_config(str(folder / "c.toml"))
        config.build(directory)
    except REFUSALS as error:
        refusal = str(error).strip()
    else:
        return False
    assert refusal, f"seed {seed}: no word of what is wrong"
    return True


def _try(folder, examples):
    counts = [0, 0]

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(SEEDS)
    def each(seed):
        counts[_refused(folder, seed)] += 1

    each()
    return counts


def _in_a_line(method):
    return ", ".join(method.replace('"', "").split("\n")[:2])


@pytest.mark.parametrize("method", fuzzing.METHODS, ids=_in_a_line)
@pytest.mark.parametrize("base", [fuzzing.SMALL, fuzzing.MARKET], ids=["epidemic", "market"])
def test_configurations_build_before_mistakes_are_put_into_them(base, method, tmp_path):
    _write(tmp_path, fuzzing.good(base + "[method]\n" + method))
    config, directory, _ = load_config(str(tmp_path / "c.toml"))
    config.build(directory)


def test_malformed_configurations_and_data_end_in_one_sentence(tmp_path):
    accepted, refused = _try(tmp_path, 150)
    assert refused > accepted


@pytest.mark.slow
def test_two_thousand_malformed_configurations_and_data_end_in_one_sentence(tmp_path):
    _, refused = _try(tmp_path, 2800)
    assert refused >= 2000


def test_malformed_worlds_end_in_one_sentence(tmp_path):
    for seed in range(40):
        path = tmp_path / f"{seed}.h5"
        fuzzing.broken_world(path, seed)
        with pytest.raises(worlds.WorldError, match=r"\S"):
            worlds.World.load(path)


def test_malformed_configurations_end_the_command_in_one_sentence(here, monkeypatch, capsys):
    seed = tried = 0
    while tried < 20:
        seed += 1
        if not _refused(here, seed):
            continue
        tried += 1
        before = {p.name: p.read_bytes() for p in here.iterdir()}
        code, out, err = run(monkeypatch, capsys, "calibrate", "c.toml", "--quiet")
        assert code == 2, (seed, out, err)
        assert err.startswith("calibrant: "), (seed, err)
        assert err.count("\n") == 1, (seed, err)
        assert "Traceback" not in err
        assert {p.name: p.read_bytes() for p in here.iterdir()} == before, f"seed {seed} left something behind"
