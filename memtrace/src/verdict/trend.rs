//! Whether figures rise, and how fast: Theil–Sen's slope with Sen's interval, and the test of Mann
//! and Kendall. Both ask only for the order of pairs, so outliers (a collection, a burst) do not
//! carry them away. Pure.
//!
//! Limit: the points are taken as independent. What wanders slowly looks surer than it is; a claim
//! of growth therefore asks for more than a small `p`.

/// Longer series are thinned out: 120 points have 7,140 pairs.
const MOST_POINTS: usize = 120;
/// Of the normal distribution, for an interval of 95 %.
const Z_95: f64 = 1.959_964;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trend {
    /// The median of the slopes of all pairs, per unit of `x`.
    pub slope: f64,
    /// The interval that holds the slope with 95 % confidence.
    pub low: f64,
    pub high: f64,
    /// Probability of an order like this, or a clearer one, without any trend (two-sided).
    pub p: f64,
    pub points: usize,
}

/// `(x, y)` with `x` ascending. `None` for fewer than four points.
pub fn trend(points: &[(f64, f64)]) -> Option<Trend> {
    let thinned: Vec<(f64, f64)>;
    let points = if points.len() > MOST_POINTS {
        let step = (points.len() - 1) as f64 / (MOST_POINTS - 1) as f64;
        let at = |i: usize| ((i as f64 * step).round() as usize).min(points.len() - 1);
        thinned = (0..MOST_POINTS).map(|i| points[at(i)]).collect();
        &thinned
    } else {
        points
    };
    let n = points.len();
    if n < 4 {
        return None;
    }
    let mut slopes = Vec::with_capacity(n * (n - 1) / 2);
    let mut s = 0i64;
    for (i, (x0, y0)) in points.iter().enumerate() {
        for (x1, y1) in &points[i + 1..] {
            s += match y1.partial_cmp(y0) {
                Some(std::cmp::Ordering::Greater) => 1,
                Some(std::cmp::Ordering::Less) => -1,
                _ => 0,
            };
            let dx = x1 - x0;
            if dx > 0.0 {
                slopes.push((y1 - y0) / dx);
            }
        }
    }
    if slopes.is_empty() {
        return None;
    }
    slopes.sort_by(f64::total_cmp);
    let deviation = variance(points).sqrt();
    let last = slopes.len() - 1;
    let at = |rank: f64| slopes[(rank.max(0.0).round() as usize).min(last)];
    let middle = slopes.len() as f64 / 2.0;
    let half_width = Z_95 * deviation / 2.0;
    Some(Trend {
        slope: median_of_sorted(&slopes),
        low: at((middle - half_width).floor() - 1.0),
        high: at((middle + half_width).ceil()),
        p: match deviation {
            0.0 => 1.0,
            _ => two_sided((s as f64 - (s.signum() as f64)) / deviation),
        },
        points: n,
    })
}

/// Of `S` without a trend; equal values make it smaller.
fn variance(points: &[(f64, f64)]) -> f64 {
    let term = |n: f64| n * (n - 1.0) * (2.0 * n + 5.0);
    let mut values: Vec<f64> = points.iter().map(|(_, y)| *y).collect();
    values.sort_by(f64::total_cmp);
    let ties = values.chunk_by(|a, b| a == b).map(|equal| term(equal.len() as f64)).sum::<f64>();
    ((term(points.len() as f64) - ties) / 18.0).max(0.0)
}

/// Probability of being at least `z` from the middle of the normal distribution. Abramowitz and
/// Stegun, 26.2.17: off by less than 7.5e-8.
fn two_sided(z: f64) -> f64 {
    let z = z.abs();
    let t = 1.0 / (1.0 + 0.231_641_9 * z);
    let series = t
        * (0.319_381_530
            + t * (-0.356_563_782
                + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    let density = (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    (2.0 * density * series).clamp(0.0, 1.0)
}

fn median_of_sorted(values: &[f64]) -> f64 {
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

/// 0 of nothing.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    if values.is_empty() { 0.0 } else { median_of_sorted(&values) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Figures from −1 to 1 that look random and are the same every time.
    fn noise(seed: u64) -> impl FnMut() -> f64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        }
    }

    fn line(n: usize, slope: f64, spread: f64, seed: u64) -> Vec<(f64, f64)> {
        let mut noise = noise(seed);
        (0..n).map(|x| (x as f64, slope * x as f64 + spread * noise())).collect()
    }

    #[test]
    fn a_straight_line_has_its_slope_and_no_doubt() {
        let found = trend(&line(20, 3.0, 0.0, 1)).unwrap();
        assert_eq!((found.slope, found.low, found.high), (3.0, 3.0, 3.0));
        assert!(found.p < 1e-6, "{found:?}");
    }

    #[test]
    fn one_outlier_does_not_move_the_slope() {
        let mut points = line(20, 3.0, 0.0, 1);
        points[10].1 = 1e9;
        let found = trend(&points).unwrap();
        assert!((found.slope - 3.0).abs() < 1e-9, "{found:?}");
    }

    #[test]
    fn the_interval_holds_the_slope_about_as_often_as_it_says() {
        let held = (0..400).filter(|seed| {
            let found = trend(&line(24, 0.5, 4.0, *seed)).unwrap();
            (found.low..=found.high).contains(&0.5)
        });
        let held = held.count();
        assert!((360..=400).contains(&held), "{held} of 400");
    }

    #[test]
    fn noise_alone_is_rarely_taken_for_a_trend() {
        let wrong = (0..400).filter(|seed| trend(&line(24, 0.0, 4.0, *seed)).unwrap().p < 0.05);
        let wrong = wrong.count();
        assert!(wrong <= 32, "{wrong} of 400");
    }

    #[test]
    fn a_constant_has_no_trend() {
        let found = trend(&[(0.0, 7.0), (1.0, 7.0), (2.0, 7.0), (3.0, 7.0)]).unwrap();
        assert_eq!((found.slope, found.p), (0.0, 1.0));
    }

    #[test]
    fn too_little_is_no_trend() {
        assert!(trend(&[(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)]).is_none());
        assert!(trend(&[(1.0, 1.0); 5]).is_none());
        assert!(trend(&[]).is_none());
    }

    #[test]
    fn a_long_series_is_thinned_and_keeps_its_slope() {
        let found = trend(&line(5_000, 3.0, 10.0, 3)).unwrap();
        assert_eq!(found.points, MOST_POINTS);
        assert!((found.slope - 3.0).abs() < 0.01, "{found:?}");
    }

    #[test]
    fn the_normal_distribution_is_the_one_of_the_tables() {
        for (z, p) in [(0.0, 1.0), (1.0, 0.317_310_5), (1.959_964, 0.05), (3.0, 0.002_699_8)] {
            assert!((two_sided(z) - p).abs() < 1e-6, "{z}");
        }
    }
}
