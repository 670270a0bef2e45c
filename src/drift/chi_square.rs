//! Quantiles of the chi-square distribution: what PSI comes to by chance.
//!
//! The lower regularised incomplete gamma function by its series (DLMF 8.11.4), inverted by Newton's method from the
//! start that Wilson and Hilferty (1931) give.

use std::f64::consts::{LN_2, PI};

/// More terms than the series takes for any distribution of [`FREEDOM_MAX`] degrees.
const TERMS_MAX: usize = 10_000;

/// Newton's method doubles the digits in each step; it is there after six.
const STEPS_MAX: usize = 60;

/// Degrees of freedom at most: far more than there can be bins.
const FREEDOM_MAX: u32 = 1000;

/// The value that a chi-square variable of `freedom` degrees exceeds with probability `tail`. Zero for no degrees.
pub(super) fn upper_point(freedom: u32, tail: f64) -> f64 {
    let (freedom, tail) = (freedom.min(FREEDOM_MAX), tail.clamp(1e-12, 1.0 - 1e-12));
    if freedom == 0 {
        return 0.0;
    }
    let mut x = wilson_hilferty(freedom, tail);
    for _ in 0..STEPS_MAX {
        let step = (lower(freedom, x) - (1.0 - tail)) / density(freedom, x);
        // Never past zero: there the density ends.
        let next = (x - step).max(x / 2.0);
        let moved = (next - x).abs();
        x = next;
        if moved <= 1e-14 * x {
            break;
        }
    }
    x
}

/// Wilson and Hilferty: the cube root of a chi-square variable over its degrees is nearly normal.
fn wilson_hilferty(freedom: u32, tail: f64) -> f64 {
    let spread = 2.0 / (9.0 * f64::from(freedom));
    let root = 1.0 - spread + normal_upper_point(tail) * spread.sqrt();
    (f64::from(freedom) * root.powi(3)).max(1e-6)
}

/// The normal distribution's, to 4.5e-4 (Abramowitz and Stegun 26.2.23): good enough for a start.
fn normal_upper_point(tail: f64) -> f64 {
    let t = (-2.0 * tail.min(1.0 - tail).ln()).sqrt();
    let over = 2.515_517 + 0.802_853 * t + 0.010_328 * t * t;
    let under = 1.0 + 1.432_788 * t + 0.189_269 * t * t + 0.001_308 * t * t * t;
    let point = t - over / under;
    if tail <= 0.5 { point } else { -point }
}

/// The probability of a value up to `x`.
fn lower(freedom: u32, x: f64) -> f64 {
    let (shape, half) = (f64::from(freedom) / 2.0, x / 2.0);
    let (mut term, mut sum) = (1.0, 1.0);
    for n in 1..TERMS_MAX {
        term *= half / (shape + float(n));
        sum += term;
        if term < sum * 1e-17 {
            break;
        }
    }
    // Gamma(shape + 1) belongs to two more degrees of freedom.
    (shape * half.ln() - half - ln_gamma_of_half(freedom + 2) + sum.ln()).exp()
}

fn density(freedom: u32, x: f64) -> f64 {
    let shape = f64::from(freedom) / 2.0;
    ((shape - 1.0) * x.ln() - x / 2.0 - shape * LN_2 - ln_gamma_of_half(freedom)).exp()
}

/// The logarithm of Gamma(`twice` / 2), by Gamma(z + 1) = z Gamma(z) from Gamma(1) = 1 or Gamma(1/2) = √π.
fn ln_gamma_of_half(twice: u32) -> f64 {
    let (mut at, mut sum) = if twice.is_multiple_of(2) { (2, 0.0) } else { (1, PI.sqrt().ln()) };
    while at < twice {
        sum += (f64::from(at) / 2.0).ln();
        at += 2;
    }
    sum
}

#[expect(clippy::cast_precision_loss, reason = "a few thousand at most")]
fn float(n: usize) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_degrees_are_no_chance() {
        assert!(upper_point(0, 0.05) == 0.0);
    }

    #[test]
    fn the_textbook_values() {
        for (freedom, tail, expected) in [(1, 0.05, 3.841_458_820_694_124), (10, 0.05, 18.307_038_053_275_146)] {
            assert!((upper_point(freedom, tail) - expected).abs() < 1e-9);
        }
    }

    #[test]
    fn odd_requests_get_a_finite_answer() {
        for tail in [0.0, 1.0, -3.0, 0.999_999] {
            for freedom in [1, 2, 3, u32::MAX] {
                assert!(upper_point(freedom, tail).is_finite(), "{freedom} {tail}");
            }
        }
    }
}
