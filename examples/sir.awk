# A stochastic SIR epidemic among n people who all meet, day by day (chain binomial, as Reed and Frost's).
#
#     awk -f sir.awk -v beta=0.4 -v gamma=0.1 -v initial=5 -v seed=1
#
# Prints infected and recovered at the end of each day, as CSV.

function binomial(n, p,    i, k) {
    k = 0
    for (i = 0; i < n; i++) k += rand() < p
    return k
}

BEGIN {
    if (n == 0) n = 500
    if (days == 0) days = 40
    srand(seed)
    infected = int(initial) + (rand() < initial - int(initial))
    if (infected > n) { print "sir.awk: more infected than people" > "/dev/stderr"; exit 1 }
    susceptible = n - infected
    recovered = 0
    print "infected,recovered"
    for (day = 1; day <= days; day++) {
        caught = binomial(susceptible, 1 - exp(-beta * infected / n))
        healed = binomial(infected, 1 - exp(-gamma))
        susceptible -= caught
        infected += caught - healed
        recovered += healed
        print infected "," recovered
    }
}
