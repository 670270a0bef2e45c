//! How far two counts over the same places are apart. Pure; formulas and their sources are in docs/drift.md.
//!
//! A place is a bin, a category, or one of "missing", "below", "above" and "other". Both sides have the same places.

use super::chi_square;

/// The share of windows without drift in which chance may exceed its point in any feature.
const FALSE_ALARMS: f64 = 0.05;

/// The chance that is left to each of so many features, so that all of them together have [`FALSE_ALARMS`] (Bonferroni).
pub(super) fn tail(features: usize) -> f64 {
    FALSE_ALARMS / float(features.max(1) as u64)
}

/// Population stability index: the sum of (p - q) ln(p / q) over the places. Zero or more, and the same both ways round.
///
/// A place that one side has no row in counts there as half a row, so that a place a small sample happens to miss weighs
/// little; one that neither has a row in counts for nothing.
pub(super) fn psi(expected: &[u64], observed: &[u64]) -> f64 {
    let (m, n) = (total(expected), total(observed));
    if m == 0 || n == 0 {
        return 0.0;
    }
    let term = |(&e, &o): (&u64, &u64)| {
        if e == 0 && o == 0 {
            return 0.0;
        }
        let (p, q) = (filled(o) / float(n), filled(e) / float(m));
        (p - q) * (p / q).ln()
    };
    expected.iter().zip(observed).map(term).sum()
}

/// A count, or half a row where there is none.
fn filled(count: u64) -> f64 {
    if count == 0 { 0.5 } else { float(count) }
}

/// Jensen-Shannon distance with logarithms to base 2: the root of the divergence, from 0 to 1.
pub(super) fn jensen_shannon(expected: &[u64], observed: &[u64]) -> f64 {
    let part = |share: f64, middle: f64| if share > 0.0 { share * (share / middle).log2() } else { 0.0 };
    let divergence: f64 = shares(expected, observed)
        .map(|(p, q)| {
            let middle = f64::midpoint(p, q);
            f64::midpoint(part(p, middle), part(q, middle))
        })
        .sum();
    // Rounding can leave the sum of a perfect match a hair below zero, and that of nothing is minus zero.
    (divergence.clamp(0.0, 1.0) + 0.0).sqrt()
}

/// Kolmogorov–Smirnov on bins in order: the largest difference between the two cumulative distributions.
pub(super) fn kolmogorov_smirnov(expected: &[u64], observed: &[u64]) -> f64 {
    let differences = shares(expected, observed).scan(0.0, |sum, (p, q)| {
        *sum += p - q;
        Some(f64::abs(*sum))
    });
    differences.fold(0.0, f64::max).min(1.0)
}

/// The largest difference between the shares of one place.
pub(super) fn l_infinity(expected: &[u64], observed: &[u64]) -> f64 {
    shares(expected, observed).map(|(p, q)| (p - q).abs()).fold(0.0, f64::max)
}

/// A largest difference less what samples of `n` and `m` rows differ by anyway, as SageMaker Model Monitor's `Robust`
/// comparison has it: max(0, d - 1.8 √((n + m) / (n m))).
pub(super) fn robust(difference: f64, n: u64, m: u64) -> f64 {
    if n == 0 || m == 0 {
        return 0.0;
    }
    let (n, m) = (float(n), float(m));
    (difference - 1.8 * ((n + m) / (n * m)).sqrt()).max(0.0)
}

/// What the PSI of an unchanged population comes to by chance, for samples of `n` and `m` rows: (1/n + 1/m) times the
/// [chi-square point](chance_point) of its places (Yurdakul and Naranjo 2020).
pub(super) fn by_chance(n: u64, m: u64, point: f64) -> f64 {
    if n == 0 || m == 0 { 0.0 } else { (1.0 / float(n) + 1.0 / float(m)) * point }
}

/// The same for `places` places and a probability of `tail`, with what small samples add: a place of few rows has a
/// heavier tail than chi-square. The factor covers what a million draws came to, for 5 to 51 places and samples of 200 to
/// 30,000 rows: scripts/simulate-psi.py.
pub(super) fn psi_by_chance(n: u64, m: u64, places: u32, point: f64) -> f64 {
    let few = f64::from(places) / float(n.min(m).max(1));
    by_chance(n, m, point) * (1.0 + 1.5 * few)
}

/// The point that chance exceeds with probability `tail` over `places` places: chi-square of one degree less.
pub(super) fn chance_point(places: u32, tail: f64) -> f64 {
    chi_square::upper_point(places.saturating_sub(1), tail)
}

/// What the Jensen-Shannon distance comes to where the PSI comes to `psi`: of two shares that are near each other the
/// divergence is an eighth of the PSI, in nats.
pub(super) fn jensen_shannon_at(psi: f64) -> f64 {
    (psi / (8.0 * std::f64::consts::LN_2)).sqrt().min(1.0)
}

/// The Kolmogorov-Smirnov distance that samples of `n` and `m` rows of one population exceed with probability `tail` at
/// most; on bins they exceed it more rarely.
pub(super) fn kolmogorov_smirnov_by_chance(n: u64, m: u64, tail: f64) -> f64 {
    if n == 0 || m == 0 {
        return 0.0;
    }
    let (n, m) = (float(n), float(m));
    (-(tail / 2.0).ln() / 2.0 * (n + m) / (n * m)).sqrt().min(1.0)
}

/// The same of the largest difference between the shares of one place.
pub(super) fn l_infinity_by_chance(expected: &[u64], observed: &[u64], tail: f64) -> f64 {
    let (m, n) = (total(expected), total(observed));
    let tail = tail / float(u64::from(occupied(expected, observed).max(1)));
    let each = expected.iter().zip(observed).map(|(&e, &o)| share_by_chance((o, n), (e, m), tail));
    each.fold(0.0, f64::max)
}

/// The difference between two shares of one population, each so many of so many rows, that chance exceeds with
/// probability `tail`, either way, by the normal law. The spread is the larger of two: of the rows taken together, which
/// holds for a share that shrinks; and of each share by itself, with a row more on each side of it because else a share of
/// none had no spread (Agresti and Caffo 2000), which holds for a rare one that grows.
pub(super) fn share_by_chance((o, n): (u64, u64), (e, m): (u64, u64), tail: f64) -> f64 {
    if n == 0 || m == 0 {
        return 0.0;
    }
    let spread = |share: f64| share * (1.0 - share);
    let apart = |part: u64, whole: u64| {
        let whole = float(whole) + 2.0;
        spread((float(part) + 1.0) / whole) / whole
    };
    let together = spread(share(o + e, n + m)) * (1.0 / float(n) + 1.0 / float(m));
    let normal = chi_square::upper_point(1, tail).sqrt();
    (normal * together.max(apart(o, n) + apart(e, m)).sqrt()).min(1.0)
}

/// The share of `n` rows beyond the smallest and the largest of `m` earlier ones of the same population that chance
/// exceeds with probability `tail` at most. In any order of all rows the earlier ones have the extremes: k or more are
/// beyond with the probability of k draws before the second of an urn's other kind, r^k (1 + k (1 - r)), r = n/(n + m).
pub(super) fn out_of_range_by_chance(n: u64, m: u64, tail: f64) -> f64 {
    if n == 0 || m == 0 {
        return 0.0;
    }
    let ratio = float(n) / (float(n) + float(m));
    let exceeds = |beyond: u64| {
        let beyond = float(beyond);
        (beyond * ratio.ln()).exp() * (1.0 + beyond * (1.0 - ratio)) > tail
    };
    // The first that is rare enough; what is exceeded is one less.
    let (mut likely, mut rare) = (0, n + 1);
    while rare - likely > 1 {
        let middle = u64::midpoint(likely, rare);
        if exceeds(middle) { likely = middle } else { rare = middle }
    }
    share(likely, n)
}

/// The places that either side has a row in.
pub(super) fn occupied(expected: &[u64], observed: &[u64]) -> u32 {
    let both = expected.iter().zip(observed).filter(|(e, o)| **e + **o > 0).count();
    u32::try_from(both).unwrap_or(u32::MAX)
}

/// `part` of `whole`; none of nothing.
pub(super) fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { float(part) / float(whole) }
}

/// How many rows.
pub(super) fn total(counts: &[u64]) -> u64 {
    counts.iter().sum()
}

/// Each place's share on both sides; nothing where a side has no rows.
fn shares<'a>(expected: &'a [u64], observed: &'a [u64]) -> impl Iterator<Item = (f64, f64)> + 'a {
    let (m, n) = (total(expected), total(observed));
    let places = if m == 0 || n == 0 { 0 } else { expected.len() };
    expected.iter().zip(observed).take(places).map(move |(&e, &o)| (share(o, n), share(e, m)))
}

#[expect(clippy::cast_precision_loss, reason = "rows are counted far below 2^53")]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// What scipy says of the same counts; made by scripts/make-drift-scores.py.
    const SCIPY: &str = include_str!("../../tests/fixtures/drift-scores.json");

    fn counts(value: &Value) -> Vec<u64> {
        value.as_array().unwrap().iter().map(|count| count.as_u64().unwrap()).collect()
    }

    fn check(found: f64, expected: &Value, what: &str) {
        let expected = expected.as_f64().unwrap();
        assert!((found - expected).abs() <= 1e-9 * expected.abs().max(1.0), "{what}: {found} for {expected}");
    }

    #[test]
    fn scipy_agrees() {
        let fixture: Value = serde_json::from_str(SCIPY).unwrap();
        let cases = fixture["scores"].as_array().unwrap();
        assert!(cases.len() > 20);
        for case in cases {
            let (e, o) = (counts(&case["expected"]), counts(&case["observed"]));
            check(psi(&e, &o), &case["psi"], "PSI");
            check(jensen_shannon(&e, &o), &case["js"], "Jensen-Shannon");
            check(kolmogorov_smirnov(&e, &o), &case["ks"], "Kolmogorov-Smirnov");
            check(l_infinity(&e, &o), &case["linf"], "L-infinity");
            check(robust(kolmogorov_smirnov(&e, &o), total(&o), total(&e)), &case["robust"], "robust");
        }
        for case in fixture["chi_square"].as_array().unwrap() {
            let freedom = u32::try_from(case["freedom"].as_u64().unwrap()).unwrap();
            let found = chi_square::upper_point(freedom, case["tail"].as_f64().unwrap());
            check(found, &case["point"], &format!("chi-square of {freedom}"));
        }
        for case in fixture["by_chance"].as_array().unwrap() {
            let number = |name: &str| case[name].as_u64().unwrap();
            let places = u32::try_from(number("places")).unwrap();
            let features = usize::try_from(number("features")).unwrap();
            let found = by_chance(number("n"), number("m"), chance_point(places, tail(features)));
            check(found, &case["point"], "by chance");
        }
    }

    /// What Evidently says of the same bins; made by scripts/make-drift-evidently.py.
    const EVIDENTLY: &str = include_str!("../../tests/fixtures/drift-evidently.json");

    #[test]
    fn evidently_agrees() {
        let fixture: Value = serde_json::from_str(EVIDENTLY).unwrap();
        let cases = fixture.as_array().unwrap();
        assert!(cases.len() > 15);
        for case in cases {
            let (e, o) = (counts(&case["expected"]), counts(&case["observed"]));
            check(psi(&e, &o), &case["psi"], "PSI");
            check(jensen_shannon(&e, &o), &case["js"], "Jensen-Shannon");
            check(kolmogorov_smirnov(&e, &o), &case["ks"], "Kolmogorov-Smirnov");
        }
    }

    #[test]
    fn nothing_is_no_distance() {
        for score in [psi, jensen_shannon, kolmogorov_smirnov, l_infinity] {
            assert!(score(&[1, 2], &[0, 0]) == 0.0 && score(&[], &[]) == 0.0 && score(&[0], &[3]) == 0.0);
        }
        assert!(robust(0.9, 0, 5) == 0.0 && by_chance(0, 1, 4.0) == 0.0);
    }

    /// Draws two samples of one population of `shares`, six hundred times, and checks how often a difference is more than
    /// what chance makes of it.
    #[track_caller]
    fn check_by_chance(m: u64, n: u64, exceeds: impl Fn(&[u64], &[u64], f64) -> bool, most: f64) {
        let shares = [0.4, 0.3, 0.15, 0.1, 0.04, 0.01];
        let mut draw = fastrand::Rng::with_seed(3);
        let mut sample = |rows: u64| {
            let mut counts = [0; 6];
            for _ in 0..rows {
                let mut left = draw.f64();
                let place = shares.iter().position(|share| {
                    left -= share;
                    left < 0.0
                });
                counts[place.unwrap_or(5)] += 1;
            }
            counts
        };
        let exceeded = (0..600).filter(|_| exceeds(&sample(m), &sample(n), 0.05)).count();
        let share = f64::from(u32::try_from(exceeded).unwrap()) / 600.0;
        assert!(share <= most, "{share} of the samples");
    }

    #[test]
    fn an_unchanged_population_exceeds_what_chance_makes_as_rarely_as_stated() {
        // Of 600 draws at 5 %, more than 8 % come in one of a thousand runs; the normal law is an approximation.
        for (m, n) in [(1000, 200), (2000, 500)] {
            let ks = |e: &[u64], o: &[u64], tail| {
                kolmogorov_smirnov(e, o) > kolmogorov_smirnov_by_chance(total(o), total(e), tail)
            };
            check_by_chance(m, n, ks, 0.065);
            let stability = |e: &[u64], o: &[u64], tail| {
                let places = occupied(e, o);
                psi(e, o) > psi_by_chance(total(o), total(e), places, chance_point(places, tail))
            };
            check_by_chance(m, n, stability, 0.08);
            let linf = |e: &[u64], o: &[u64], tail| l_infinity(e, o) > l_infinity_by_chance(e, o, tail);
            check_by_chance(m, n, linf, 0.08);
            let js = |e: &[u64], o: &[u64], tail| {
                let places = occupied(e, o);
                let psi = psi_by_chance(total(o), total(e), places, chance_point(places, tail));
                jensen_shannon(e, o) > jensen_shannon_at(psi)
            };
            check_by_chance(m, n, js, 0.08);
            let place = |e: &[u64], o: &[u64], tail| {
                let difference = share(o[3], total(o)) - share(e[3], total(e));
                difference.abs() > share_by_chance((o[3], total(o)), (e[3], total(e)), tail)
            };
            check_by_chance(m, n, place, 0.08);
        }
    }

    /// Twenty bins and a missing value, few rows: chi-square alone is exceeded in more than 2 % of such samples.
    #[test]
    fn the_heavier_tail_of_few_rows_is_covered() {
        let mut draw = fastrand::Rng::with_seed(9);
        let mut sample = |rows: u64| {
            let mut counts = [0; 21];
            (0..rows).for_each(|_| counts[draw.usize(..21)] += 1);
            counts
        };
        let exceeds = |e: &[u64], o: &[u64]| psi(e, o) > psi_by_chance(200, 1000, 21, chance_point(21, 0.01));
        let exceeded = (0..3000).filter(|_| exceeds(&sample(1000), &sample(200))).count();
        assert!(exceeded <= 45, "{exceeded} of 3000 for thirty that are stated");
    }

    #[test]
    fn rows_beyond_the_range_of_others_are_as_rare_as_stated() {
        let mut draw = fastrand::Rng::with_seed(4);
        for (m, n) in [(400, 250), (1000, 1000)] {
            let point = out_of_range_by_chance(n, m, 0.05);
            let exceeded = (0..2000).filter(|_| {
                let known: Vec<f64> = (0..m).map(|_| draw.f64()).collect();
                let (low, high) =
                    known.iter().fold((1.0, 0.0), |(low, high), x| (f64::min(low, *x), f64::max(high, *x)));
                let beyond = (0..n).filter(|_| !(low..=high).contains(&draw.f64())).count() as u64;
                share(beyond, n) > point
            });
            let exceeded = exceeded.count();
            assert!((10..=130).contains(&exceeded), "{exceeded} of 2000 for {m} and {n}");
        }
    }

    fn sides() -> impl Strategy<Value = (Vec<u64>, Vec<u64>)> {
        (1_usize..60).prop_flat_map(|places| {
            let side = || proptest::collection::vec(prop_oneof![Just(0), 1..100_000_u64], places);
            (side(), side())
        })
    }

    proptest! {
        #[test]
        fn scores_are_distances((e, o) in sides()) {
            prop_assert!(psi(&e, &o) >= 0.0 && psi(&e, &o).is_finite());
            prop_assert!((psi(&e, &o) - psi(&o, &e)).abs() < 1e-9);
            prop_assert!(psi(&e, &e) == 0.0);
            for score in [jensen_shannon, kolmogorov_smirnov, l_infinity] {
                prop_assert!((0.0..=1.0).contains(&score(&e, &o)));
                prop_assert!((score(&e, &o) - score(&o, &e)).abs() < 1e-9);
                prop_assert!(score(&e, &e) < 1e-7);
            }
        }

        #[test]
        fn more_features_need_more_evidence(n in 200_u64..100_000, places in 2_u32..56, features in 1_usize..500) {
            let point = |n, places, features| by_chance(n, 10_000, chance_point(places, tail(features)));
            let one = point(n, places, features);
            prop_assert!(point(n, places, features + 1) > one);
            prop_assert!(point(n + 1, places, features) < one);
            prop_assert!(point(n, places + 1, features) > one);
        }
    }
}
