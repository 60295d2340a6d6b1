//! Figures with their units, the same everywhere.

/// `12.3 MiB`; exact below 1 KiB: `37 B`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut scaled = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would print as 1024.0.
    while scaled >= 1023.95 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    format!("{scaled:.1} {}", UNITS[unit])
}

/// MiB with one digit, for columns that are read against each other; the sign where negative.
pub fn mib(bytes: i128) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

/// `1,234,567`
pub fn grouped(number: impl Into<i128>) -> String {
    let number: i128 = number.into();
    let digits = number.unsigned_abs().to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3 + 1);
    if number < 0 {
        out.push('-');
    }
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `+1.2 MiB/s`, `−37 B/s`, `±0 B/s`.
pub fn rate(bytes_per_second: f64) -> String {
    let rounded = bytes_per_second.abs().round();
    if rounded.is_nan() || rounded < 1.0 {
        return "±0 B/s".to_owned();
    }
    let sign = if bytes_per_second < 0.0 { '−' } else { '+' };
    // Saturates; a rate beyond 2^64 is not of this world.
    format!("{sign}{}/s", bytes(rounded as u64))
}

/// `340 ms`, `12.3 s`, `4 m 10 s`, `3 h 05 m`, `2 d 4 h`.
pub fn duration(ns: u64) -> String {
    const SECOND: u64 = 1_000_000_000;
    let seconds = ns / SECOND;
    match seconds {
        0 if ns < 1_000 => format!("{ns} ns"),
        0 if ns < 1_000_000 => format!("{} µs", ns / 1_000),
        0 => format!("{} ms", ns / 1_000_000),
        1..60 => {
            let tenths = ns % SECOND / (SECOND / 10);
            if tenths == 0 { format!("{seconds} s") } else { format!("{seconds}.{tenths} s") }
        }
        60..3600 => format!("{} m {:02} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {:02} m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// `1 s to 19 s old`, `12 s old` where both read the same.
pub fn ages((youngest_ns, oldest_ns): (u64, u64)) -> String {
    // Below a millisecond an age tells nothing.
    let shown = |ns: u64| if ns < 1_000_000 { "0 s".to_owned() } else { duration(ns) };
    let (youngest, oldest) = (shown(youngest_ns), shown(oldest_ns));
    if youngest == oldest { format!("{oldest} old") } else { format!("{youngest} to {oldest} old") }
}

/// `2026-11-23 10:33:03 UTC`; proleptic Gregorian, no leap seconds.
pub fn instant(unix_ns: u64) -> String {
    let seconds = unix_ns / 1_000_000_000;
    let (mut days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Days since 1970-01-01 to a date, counted from 0000-03-01 so that leap days end a year.
    days += 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
        of_day / 3600,
        of_day % 3600 / 60,
        of_day % 60
    )
}

/// `1 block`, `2 blocks`.
pub fn count(number: u64, singular: &str) -> String {
    let plural = match number {
        1 => "",
        _ if singular.ends_with('s') => "es",
        _ => "s",
    };
    format!("{} {singular}{plural}", grouped(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_carry_their_unit() {
        for (given, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_575, "1.0 MiB"),
            (8_277_980, "7.9 MiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(bytes(given), shown);
        }
    }

    #[test]
    fn rates_carry_their_sign() {
        assert_eq!(rate(0.2), "±0 B/s");
        assert_eq!(rate(-0.4), "±0 B/s");
        assert_eq!(rate(414_214.7), "+404.5 KiB/s");
        assert_eq!(rate(-37.0), "−37 B/s");
        assert_eq!(rate(f64::NAN), "±0 B/s");
    }

    #[test]
    fn digits_are_grouped() {
        assert_eq!(grouped(0u64), "0");
        assert_eq!(grouped(999u64), "999");
        assert_eq!(grouped(1_234_567u64), "1,234,567");
        assert_eq!(grouped(-1_000i64), "-1,000");
        assert_eq!(count(1, "block"), "1 block");
        assert_eq!(count(2_000, "block"), "2,000 blocks");
    }

    #[test]
    fn durations_are_read_at_a_glance() {
        for (ns, shown) in [
            (0, "0 ns"),
            (7_300_000, "7 ms"),
            (20_000_000_000, "20 s"),
            (1_250_000_000, "1.2 s"),
            (250_000_000_000, "4 m 10 s"),
            (11_100_000_000_000, "3 h 05 m"),
            (187_200_000_000_000, "2 d 4 h"),
        ] {
            assert_eq!(duration(ns), shown);
        }
    }

    #[test]
    fn an_age_range_of_one_age_is_one_age() {
        assert_eq!(ages((3_000_000_000, 3_000_000_400)), "3 s old");
        assert_eq!(ages((17, 20_000_000_000)), "0 s to 20 s old");
    }

    #[test]
    fn instants_are_calendar_dates() {
        assert_eq!(instant(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(instant(951_782_399_000_000_000), "2000-02-28 23:59:59 UTC");
        assert_eq!(instant(951_782_400_000_000_000), "2000-02-29 00:00:00 UTC");
        assert_eq!(instant(1_790_000_000_000_000_000), "2026-09-21 14:13:20 UTC");
        assert!(instant(u64::MAX).starts_with("2554-"));
    }
}
