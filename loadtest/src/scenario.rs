//! Which keys a load test asks for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::ValueEnum;
use rand::Rng;
use rand_distr::{Distribution, Uniform, Zipf};

/// Skew of the read-mostly load: that of YCSB (Cooper et al., "Benchmarking cloud serving systems with YCSB", 2010).
const ZIPF_EXPONENT: f64 = 0.99;
/// The one key that everybody wants.
const HOT_KEY: u64 = 42;
/// The miss-heavy load asks for keys from a range so many times as large as that of the rows.
const MISS_RANGE: u64 = 10;

/// A pattern of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Every row once, then again: first on a cluster that has nothing in memory.
    ColdStart,
    /// Few keys are wanted by many: Zipf with exponent 0.99.
    ReadMostly,
    /// Every key is wanted as often as any other.
    Uniform,
    /// One key is wanted by all.
    HotKey,
    /// Nine in ten keys have no row.
    MissHeavy,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::ColdStart, Self::ReadMostly, Self::Uniform, Self::HotKey, Self::MissHeavy];

    /// Its name, as on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ColdStart => "cold-start",
            Self::ReadMostly => "read-mostly",
            Self::Uniform => "uniform",
            Self::HotKey => "hot-key",
            Self::MissHeavy => "miss-heavy",
        }
    }

    /// Its keys, where rows have the keys 1 to `n_rows`, at least one.
    pub fn keys(self, n_rows: u64) -> Keys {
        let uniform = |n| Keys::Uniform(Uniform::new_inclusive(1, n).expect("there is a key"));
        match self {
            Self::ColdStart => Keys::Each(Arc::default(), n_rows),
            #[expect(clippy::cast_precision_loss, reason = "a number of rows has far fewer than 53 bits")]
            Self::ReadMostly => Keys::Zipf(Zipf::new(n_rows as f64, ZIPF_EXPONENT).expect("a number and an exponent")),
            Self::Uniform => uniform(n_rows),
            Self::HotKey => Keys::One(HOT_KEY.min(n_rows)),
            Self::MissHeavy => uniform(n_rows.saturating_mul(MISS_RANGE)),
        }
    }
}

/// Draws keys.
#[derive(Clone, Debug)]
pub enum Keys {
    /// One after the other up to this, then again; all who draw share one count.
    Each(Arc<AtomicU64>, u64),
    /// The key k in proportion to k^-0.99.
    Zipf(Zipf<f64>),
    /// Each as often as any other.
    Uniform(Uniform<u64>),
    /// Always this.
    One(u64),
}

impl Keys {
    /// The key to ask for next.
    pub fn draw(&self, chance: &mut impl Rng) -> u64 {
        match self {
            Self::Each(n_drawn, n) => n_drawn.fetch_add(1, Ordering::Relaxed) % n + 1,
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number from 1 on")]
            Self::Zipf(zipf) => zipf.sample(chance) as u64,
            Self::Uniform(uniform) => uniform.sample(chance),
            Self::One(key) => *key,
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    /// Of 10,000 draws from 1,000 rows: the smallest and largest key, and how many are below 101.
    fn draws(scenario: Scenario) -> (u64, u64, usize) {
        let (keys, mut chance) = (scenario.keys(1000), StdRng::seed_from_u64(1));
        let drawn: Vec<u64> = (0..10_000).map(|_| keys.draw(&mut chance)).collect();
        let low = drawn.iter().filter(|key| **key <= 100).count();
        (*drawn.iter().min().expect("some"), *drawn.iter().max().expect("some"), low)
    }

    #[test]
    fn each_scenario_draws_as_its_name_says() {
        assert_eq!(draws(Scenario::ColdStart), (1, 1000, 1000), "each of a thousand ten times");
        let (least, most, low) = draws(Scenario::ReadMostly);
        assert!(least == 1 && most <= 1000 && (6500..7500).contains(&low), "{least} {most} {low}");
        let (least, most, low) = draws(Scenario::Uniform);
        assert!(least == 1 && most == 1000 && (900..1100).contains(&low), "{least} {most} {low}");
        assert_eq!(draws(Scenario::HotKey), (HOT_KEY, HOT_KEY, 10_000));
        let (least, most, low) = draws(Scenario::MissHeavy);
        assert!(least >= 1 && (9000..=10_000).contains(&most) && (70..130).contains(&low), "{least} {most} {low}");
    }
}
