"""Constants of JUNE.

Sources: JUNE, Aylett-Bullock et al. 2021, Royal Society Open Science 8: 210506, as configured by default in its
differentiable version GradABM-JUNE (Quera-Bofarull et al. 2023, arXiv 2307.01085); probabilities by age of the course
of the disease, Covasim (Kerr et al. 2021, PLOS Computational Biology 17(7): e1009149).
"""

import numpy as np

#: Venue types, in the order of the arrays of a calendar.
VENUES = (
    "household",
    "company",
    "school",
    "university",
    "care_home",
    "pub",
    "cinema",
    "gym",
    "visit",
    "grocery",
    "care_visit",
)
LEISURE = VENUES[5:]
#: Closed at weekends.
WEEKDAY_ONLY = ("company", "school", "university")

#: Lower ends of the age bands of severity and of reported series; the last holds everybody older.
AGE_BANDS = tuple(range(0, 100, 10))
#: Probabilities *per infection*, by age band.
SYMPTOMATIC = np.array([0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.9])
SEVERE = np.array([0.0005, 0.00165, 0.0072, 0.0208, 0.0343, 0.0765, 0.1328, 0.20655, 0.2457, 0.2457])
CRITICAL = np.array([3e-05, 8e-05, 0.00036, 0.00104, 0.00216, 0.00933, 0.03639, 0.08923, 0.1742, 0.1742])
DEATH = np.array([2e-05, 2e-05, 0.0001, 0.00032, 0.00098, 0.00265, 0.00766, 0.02439, 0.08292, 0.1619])

#: Days in a stage, log-normal (log-mean, log-sd): before moving on to the next stage, and before recovering.
EXPOSED = (1.4514, 0.3246)
PRESYMPTOMATIC = (-0.1609, 0.7159)
TO_ADMISSION = (1.6676, 0.6626)
TO_CRITICAL = (-0.1054, 1.0108)
TO_DEATH = (2.2786, 0.4282)
MILD_RECOVERY = (2.0491, 0.2462)
HOSPITAL_RECOVERY = (2.8387, 0.3382)
#: From symptom onset to antibodies that a test finds: median 13 days, 90% within three weeks (assumed; medians of
#: 11 to 14 days for IgG are reported, Borremans et al. 2020, eLife 9: e60122).
TO_ANTIBODIES = (2.565, 0.4)
#: Lower ends of the age bands whose seroprevalence is an output: from 20 to 69, about those who give blood.
SEROLOGY_BANDS = (20, 30, 40, 50, 60)

#: Infectiousness: a gamma density of the days since symptom onset, shifted, times a personal maximum.
MAX_INFECTIOUSNESS = (0.0, 0.5)  # log-normal
SHAPE = (1.56, 0.08)  # normal
RATE = (0.53, 0.03)
SHIFT = (-2.12, 0.1)

_LEISURE_AGES = (0, 9, 15, 19, 31, 51, 66, 86)
# Probability of attending on a day: weekday male, weekday female, weekend male, weekend female.
_ATTENDANCE = {
    "pub": """
        .0064 .027 .019 .0215   .0212 .0294 .0505 .0405   .0252 .0716 .053 .0705    .1476 .1088 .1605 .1255
        .0842 .08 .131 .1155    .1066 .0818 .152 .09      .03 .0202 .088 .073       .0066 .004 .0315 .03""",
    "cinema": """
        0 .0224 .0095 .0165     .0054 .0066 .0065 .007    .0012 .0198 0 .007        .0032 .0066 0 .006
        .0018 .0028 .0045 .0055 .0018 .0062 .002 .005     .003 .0016 .005 .004      0 0 0 0""",
    "gym": """
        .0248 .0808 .0925 .037  .0462 .0734 .095 .066     .1174 .0336 .1185 .022    .0804 .0426 .0725 .0335
        .0548 .036 .065 .0385   .0536 .0368 .073 .0205    .0206 .0072 .0445 .0155   .0038 .0022 0 .002""",
    "visit": """
        .4624 .4662 .562 .7425  .343 .3196 .5535 .657     .324 .5236 .505 .6075     .2764 .274 .4375 .518
        .1258 .146 .222 .259    .1638 .219 .228 .2585     .1598 .2226 .183 .2235    .0946 .0646 .0745 .101""",
    "grocery": """
        .0286 .0472 .0535 .0555 .0392 .0526 .057 .0995    .043 .0648 .0555 .095     .0534 .0984 .087 .1145
        .0762 .124 .1005 .133   .079 .163 .1225 .1405     .0392 .0492 .0875 .1145   .013 .0182 .041 .075""",
}
_CARE_VISIT = ((75, 0.25), (85, 0.5))

#: Lower ends of the age groups within which everybody attends leisure, and falls ill, alike.
GROUP_AGES = tuple(sorted({*_LEISURE_AGES, *AGE_BANDS, *(age for age, _ in _CARE_VISIT)}))
N_GROUPS = 2 * len(GROUP_AGES)  # by sex: female first
#: Age band of each group.
BAND_OF_GROUP = np.repeat(np.searchsorted(AGE_BANDS, GROUP_AGES, side="right") - 1, 2).astype(np.int32)


def group_of(age: np.ndarray, sex: np.ndarray) -> np.ndarray:
    """Group of age and sex of each person, from 0 to `N_GROUPS - 1`."""
    return 2 * (np.searchsorted(GROUP_AGES, age, side="right") - 1) + sex


def attendance() -> np.ndarray:
    """Probability of attending each leisure activity on a day: (weekday or weekend, group, activity)."""
    out = np.zeros((2, N_GROUPS, len(LEISURE)))
    ages = np.array(GROUP_AGES)
    for j, name in enumerate(LEISURE):
        if name == "care_visit":
            for low, p in _CARE_VISIT:
                out[:, np.repeat(ages >= low, 2), j] = p
            continue
        table = np.array(_ATTENDANCE[name].split(), dtype=float).reshape(len(_LEISURE_AGES), 2, 2)  # age, day, sex
        rows = table[np.searchsorted(_LEISURE_AGES, ages, side="right") - 1]
        for day in (0, 1):
            out[day, 0::2, j] = rows[:, day, 1]  # female
            out[day, 1::2, j] = rows[:, day, 0]
    return out
