"""Configurations and data files with something wrong, made at random from good ones."""

import copy
import json
import random
import tomllib

import h5py
import numpy as np

from calibrant import worlds

CSV = "day,infected,text\n" + "".join(f"{i},{i * i % 13},a\n" for i in range(8))
DATED = "date,cases,place\n" + "".join(f"2020-03-{i:02d},{i},here\n" for i in range(1, 13))
SMALL = """
[model]
name = "sir"
options = { n_agents = 40 }
steps = 8
[data]
file = "d.csv"
columns = { infected = "infected" }
[loss.streams.infected]
name = "negative-binomial"
concentration = "k"
[parameters.k]
prior = { distribution = "LogNormal", loc = 1.0, scale = 0.5 }
[parameters.beta]
prior = { distribution = "Uniform", low = 0.1, high = 2.0 }
[parameters.initial]
value = 5.0
"""
METHODS = [
    'weight = 0.1\nsimulations = 4\nmax_updates = 20\nmode = "hybrid"\nhorizon = { sliding = 1 }\nkl_samples = 50',
    'estimator = "gumbel-softmax"\ntemperature = { from = 1.0, to = 0.1 }\nposterior = "coupling-spline"\npatience = 2',
    'estimator = "finite-differences"\nstep = 0.1\nfailures = { penalty = 3.0 }',
    'name = "point"\nstarts = 2\nmax_updates = 10',
    'name = "nuts"\nchains = 2\nwarmup = 10\ndraws = 10',
    'name = "smc-abc"\nparticles = 20',
    'mode = "auto"\nmemory = 1.0\nevaluate_every = 10\nevaluation_simulations = 10\nmax_failed_fraction = 0.5',
]
MARKET = """
devices = { simulations = 2 }
[model]
name = "brock-hommes"
options = { agents = 20 }
steps = 10
[data]
synthetic = { seed = 3, values = { g2 = 0.8 } }
[loss]
name = "maximum-mean-discrepancy"
lags = 2
"""
TOWN = """
[model]
name = "june"
[model.options]
size = 200
start = 2020-03-01
days = 12
policies = [{ start = 2020-03-05, venues = ["all"], factor = "distance" }]
[data]
file = "dated.csv"
date_column = "date"
columns = { infections = "cases" }
select = { place = "here" }
until = 2020-03-09
[loss]
name = "log-mean-squared-error"
[parameters.log_contact]
prior = { distribution = "Normal", loc = [-1.0], scale = [0.5] }
"""
JUNK = [
    None, "", " ", "nonsense", "é", -1, 0, 1, 3, 10**30, -(10**12), 1.5, -0.5, 1e300, 1e-320,
    float("nan"), float("inf"), True, [], [1], ["a"], [[1.0], [2.0, 3.0]], {}, {"a": 1}, {"sliding": -1},
    {"distribution": "Normal"}, "2020-13-45", "beta", "infected", "inf",
]  # fmt: skip


def dumped(x):
    """As inline TOML."""
    if isinstance(x, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {dumped(v)}" for k, v in x.items()) + "}"
    if isinstance(x, list):
        return "[" + ", ".join(map(dumped, x)) + "]"
    if isinstance(x, bool):
        return str(x).lower()
    if isinstance(x, (int, str)):
        return json.dumps(x)
    return repr(x) if isinstance(x, float) else str(x)


def _toml(config):
    return "".join(f"{json.dumps(k)} = {dumped(v)}\n" for k, v in config.items())


def _places(x, path=()):
    if isinstance(x, dict):
        for k, v in x.items():
            yield (*path, k)
            yield from _places(v, (*path, k))


def _with_mistakes(config, rng):
    config = copy.deepcopy(config)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        path = rng.choice(list(_places(config)) or [("model",)])
        parent = config
        for key in path[:-1]:
            parent = parent[key]
        what = rng.random()
        if what < 0.15:
            parent.pop(path[-1], None)
        elif what < 0.3:
            parent[rng.choice(["x", path[-1] + "s", path[-1].upper(), ""])] = parent.pop(path[-1], 1)
        else:
            value = rng.choice(JUNK)
            if value is None:
                parent.pop(path[-1], None)
            else:
                parent[path[-1]] = value
    return _toml(config)


def _cut(text, rng):
    """The text with a few characters out of place."""
    what, at = rng.random(), rng.randrange(len(text) + 1)
    if what < 0.3:
        return text[:at]
    if what < 0.6:
        return text[:at] + rng.choice("\"'[]{}=#\n,;\\\t ä0-.e") + text[at:]
    if what < 0.8:
        return text[:at] + text[at + rng.randrange(1, 9) :]
    lines = text.split("\n")
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
    return "\n".join(lines)


def _data(text, rng):
    """A CSV with something wrong, in bytes."""
    lines = text.strip().split("\n")
    row = rng.randrange(1, len(lines))
    cells = lines[row].split(",")
    what = rng.randrange(12)
    if what == 0:
        lines = lines[:1]
    elif what == 1:
        lines = []
    elif what == 2:
        lines.append(lines[row])  # twice
    elif what == 3:
        lines += [f"{i}2020-04-01,9,here" for i in range(3)]
    elif what == 4:
        lines[row] = lines[row].rsplit(",", 1)[0]
    elif what == 5:
        lines[row] += ",more"
    elif what == 6:
        lines[0] = lines[0].replace("infected", "infekted").replace("cases", "casus").replace("date", "day")
    elif what < 10:
        junk = ["", "nan", "inf", "-3", "x", "1e400", "1;2", "2020-02-30", "1 000", "٣", '"', "\ufeff4"]
        cells[rng.randrange(len(cells))] = rng.choice(junk)
        lines[row] = ",".join(cells)
    elif what == 10:
        lines = [line.replace(",", ";") for line in lines]
    text = "\n".join(lines) + "\n"
    out = text.encode(rng.choice(["utf-8", "utf-8", "utf-8", "utf-16", "utf-8-sig"]))
    if what == 11:
        at = rng.randrange(len(out) + 1)
        out = out[:at] + bytes([rng.randrange(256), 0xFF]) + out[at:]
    return out


def good(text):
    """Files of a calibration, by name."""
    return {"d.csv": CSV.encode(), "dated.csv": DATED.encode(), "c.toml": text.encode()}


def case(seed):
    """Files of a calibration, by name, of which one has something wrong."""
    rng = random.Random(seed)
    kind = rng.random()
    if kind < 0.6:
        base = SMALL + "[method]\n" + rng.choice(METHODS)
    elif kind < 0.85:
        base = MARKET + "[method]\n" + rng.choice(METHODS)
    else:
        base = TOWN + '[method]\nmode = "hybrid"\nhorizon = { sliding = 0 }\n'
    files = good(base)
    what = rng.random()
    if "file =" in base and what < 0.3:
        name = "dated.csv" if base.startswith(TOWN) else "d.csv"
        files[name] = _data(files[name].decode(), rng)
    elif what < 0.85:
        files["c.toml"] = _with_mistakes(tomllib.loads(base), rng).encode()
    else:
        text = _cut(base, rng)
        files["c.toml"] = text.encode(rng.choice(["utf-8", "utf-8", "utf-16", "latin-1"]), errors="replace")
    return files


def broken_world(path, seed):
    """Write a world file that is none: cut off, or with an array missing, of another length or another type."""
    rng = random.Random(seed)
    world = worlds.build_world(150, seed=0)
    world.save(path)
    what = rng.randrange(5)
    if what == 0:
        whole = path.read_bytes()
        path.write_bytes(whole[: rng.randrange(len(whole) - 1)])
        return
    with h5py.File(path, "r+") as file:
        names = [f"{group}/{name}" for group in ("people", "residences", "activities", "areas") for name in file[group]]
        name = rng.choice(names)
        x = np.asarray(file[name])
        if what == 1:
            del file[name]
        elif what == 2:
            del file[name]
            file[name] = x[: len(x) // 2]
        elif what == 3:
            del file[name]
            file[name] = np.arange(len(x), dtype=np.float32)
        else:
            del file.attrs[rng.choice(["schema", "version"])]
