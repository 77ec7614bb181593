"""What is known of the population of London: the figures that a synthetic city is built to match.

Sources: Census 2011 and mid-2012 estimates as in the GLA MSOA Atlas (983 areas); Office for National Statistics, UK
business counts; Department for Education, schools and pupils; JUNE (Aylett-Bullock et al. 2021, Royal Society Open
Science 8: 210506) for how they enter an agent-based model. What is assumed, for want of a figure, says so.
"""

from collections.abc import Sequence

import numpy as np

#: Lower ends of the five-year bands in which ages are matched; the last is open and ends at 100.
AGE_BANDS = np.array([*range(0, 95, 5)])
#: Mean number of people of an area in each band (mid-2012).
AGE_COUNTS = np.array(
    [
        622,
        517.5,
        461.7,
        472.7,
        621,
        849.1,
        839.5,
        687.2,
        624,
        581.7,
        489.4,
        392.4,
        340,
        286.7,
        218.1,
        183.1,
        137,
        82.3,
        46.4,
    ]
)
#: Residents of an area on average, and the spread of areas around it (standard deviation of the log).
AREA_SIZE, AREA_LOG_SD = 8315, 0.19

#: Kinds of household, and how many of each an average area has (Census 2011).
HOUSEHOLDS = ("one person", "couple", "couple with children", "lone parent", "other")
HOUSEHOLD_COUNTS = np.array([1048, 628, 592, 421, 634])
#: Children of a couple or lone parent with children: P(1), P(2), ... (assumed, from UK family sizes).
CHILDREN_OF_COUPLE = np.array([0.42, 0.38, 0.13, 0.05, 0.02])
CHILDREN_OF_LONE_PARENT = np.array([0.55, 0.31, 0.10, 0.03, 0.01])
#: A couple without dependent children has a grown-up child at home with this probability (assumed).
GROWN_CHILD = 0.25
#: Children in families of lone parents who are dependent: 282 of 421 families (Census 2011).
LONE_PARENT_DEPENDENT = 0.67

#: Residents of care homes a person of the population, beds a home (35,564 beds in London), residents a worker.
CARE_RESIDENTS, CARE_HOME_SIZE, CARE_RESIDENTS_PER_WORKER = 0.0043, 38, 1.3

#: Pupils of a school, pupils a teacher, and the ages of each phase.
SCHOOLS = {"primary": ((4, 11), 255, 21), "secondary": ((11, 19), 985, 16)}
#: Share of each age at school (assumed at the edges: 4, 17 and 18).
AT_SCHOOL = {4: 0.5, **dict.fromkeys(range(5, 17), 1.0), 17: 0.85, 18: 0.35}

#: Students a university, and the share of each age that studies at one in the city: 402,170 places in London.
UNIVERSITY_SIZE = 10_312
AT_UNIVERSITY = ((18, 25, 0.42), (25, 30, 0.08))

#: Employed share of those not at school or university, by age (4.06 million employed in London, Census 2011).
EMPLOYED = ((16, 18, 0.1), (18, 25, 0.62), (25, 55, 0.81), (55, 60, 0.72), (60, 65, 0.5), (65, 70, 0.2), (70, 75, 0.08))
#: Of the employed, those with a fixed place of work in the city that is not their home: 2,926,149 people.
FIXED_WORKPLACE = 0.745

#: Companies: (smallest, largest size, share of companies). 87% have fewer than 10 staff, yet two fifths of all jobs are
#: in companies of 1,000 or more, and the mean is 15. Within a class, sizes are log-uniform.
COMPANIES = ((1, 9, 0.8722), (10, 49, 0.10), (50, 249, 0.0220), (250, 999, 0.0036), (1000, 6000, 0.0022))

#: Distance at which the pull of a job, in km, falls by e, and of a university (assumed: 29% of London's commuters work
#: in their own borough).
COMMUTE_KM, UNIVERSITY_KM = 7.0, 12.0
#: Jobs a resident at the centre of a city relative to its edge, and the reach of the centre as a share of the radius.
CENTRE_JOBS, CENTRE_RADIUS = 14.0, 0.12
#: People a square kilometre, which says how large a synthetic city is.
DENSITY = 5200.0
#: Areas a borough: 983 areas in 33 boroughs.
AREAS_PER_BOROUGH = 30


def steps_of(table: Sequence[tuple[int, int, float]], age: np.ndarray) -> np.ndarray:
    """Value of a table of (from, to, value) at each age; 0 outside."""
    out = np.zeros(age.shape)
    for low, high, value in table:
        out[(age >= low) & (age < high)] = value
    return out
