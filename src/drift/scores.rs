//! How far two counts over the same places are apart. Pure; formulas and their sources are in docs/drift.md.
//!
//! A place is a bin, a category, or one of "missing", "below", "above" and "other". Both sides have the same places.

use super::chi_square;

/// The share of windows without drift in which chance may exceed its point in any feature.
const FALSE_ALARMS: f64 = 0.05;

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
    // Rounding can leave the sum of a perfect match a hair below zero.
    divergence.clamp(0.0, 1.0).sqrt()
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

/// The point that chance exceeds once in twenty windows in any of `features` features, over `places` places in this one:
/// chi-square of one degree less, the chance split among the features (Bonferroni).
pub(super) fn chance_point(places: u32, features: usize) -> f64 {
    let tail = FALSE_ALARMS / float(features.max(1) as u64);
    chi_square::upper_point(places.saturating_sub(1), tail)
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
fn float(count: u64) -> f64 {
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
            let found = by_chance(number("n"), number("m"), chance_point(places, features));
            check(found, &case["point"], "by chance");
        }
    }

    #[test]
    fn nothing_is_no_distance() {
        for score in [psi, jensen_shannon, kolmogorov_smirnov, l_infinity] {
            assert!(score(&[1, 2], &[0, 0]) == 0.0 && score(&[], &[]) == 0.0 && score(&[0], &[3]) == 0.0);
        }
        assert!(robust(0.9, 0, 5) == 0.0 && by_chance(0, 1, 4.0) == 0.0);
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
            let point = |n, places, features| by_chance(n, 10_000, chance_point(places, features));
            let one = point(n, places, features);
            prop_assert!(point(n, places, features + 1) > one);
            prop_assert!(point(n + 1, places, features) < one);
            prop_assert!(point(n, places + 1, features) > one);
        }
    }
}
