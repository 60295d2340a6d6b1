//! Which kernels: the series that memtrace is tried on, where Debian has them, and which package
//! is the newest of a series; where it has none, one package of Ubuntu. Nothing here asks anyone.

/// What is to be proved on a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// memtrace works, exactly.
    Works,
    /// memtrace cannot work, and says so with its exit code for that.
    Lacks,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// `6.1`, or [`NEWEST`].
    pub series: String,
    pub expectation: Expectation,
}

/// The newest kernel that the archive has, whatever its number.
pub const NEWEST: &str = "newest";

/// The matrix: the oldest that must work, what the distributions run, what comes; and one that
/// lacks what memtrace needs.
const MATRIX: [(&str, Expectation); 6] = [
    ("5.10", Expectation::Lacks),
    ("5.15", Expectation::Works),
    ("6.1", Expectation::Works),
    ("6.12", Expectation::Works),
    ("6.18", Expectation::Works),
    (NEWEST, Expectation::Works),
];

/// The suites of Debian's archive whose kernels are looked at.
pub const SUITES: [&str; 4] = ["bullseye", "bookworm", "trixie", "trixie-backports"];

/// A package by its place and contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinned {
    pub package: &'static str,
    pub url: &'static str,
    pub sha256: &'static str,
}

/// The kernel that Ubuntu 22.04 was released with: Debian never had a 5.15 in a release.
const UBUNTU_5_15: Pinned = Pinned {
    package: "linux-image-unsigned-5.15.0-25-generic",
    url: "http://archive.ubuntu.com/ubuntu/pool/main/l/linux/\
          linux-image-unsigned-5.15.0-25-generic_5.15.0-25.25_amd64.deb",
    sha256: "ac69df20790c48217eb1386ef81fd10d3f20a4ede4dab81cc107c65d29549fa0",
};

/// Of a series that Debian has not.
pub fn pinned(series: &str) -> Option<Pinned> {
    (series == "5.15").then_some(UBUNTU_5_15)
}

/// The suites to ask for these series: fewer lists to fetch where we know.
pub fn suites(kernels: &[Kernel]) -> Vec<&'static str> {
    let known = |series: &str| match series {
        "5.10" => Some("bullseye"),
        "6.1" => Some("bookworm"),
        "6.12" => Some("trixie"),
        "6.18" | NEWEST => Some("trixie-backports"),
        _ => None,
    };
    let mut wanted: Vec<&str> = Vec::new();
    for kernel in kernels {
        match known(&kernel.series) {
            Some(suite) => wanted.push(suite),
            None => wanted.extend(SUITES),
        }
    }
    SUITES.into_iter().filter(|suite| wanted.contains(suite)).collect()
}

pub fn matrix() -> Vec<Kernel> {
    MATRIX.iter().map(|&(series, _)| of_series(series)).collect()
}

/// What CI has the time for: the oldest that must work, and the one that cannot.
pub fn short() -> Vec<Kernel> {
    ["5.10", "6.1"].map(of_series).to_vec()
}

/// Any series may be asked for; what is not known to lack something must work.
pub fn of_series(series: &str) -> Kernel {
    let known = MATRIX.iter().find(|(name, _)| *name == series);
    let expectation = known.map_or(Expectation::Works, |(_, expectation)| *expectation);
    Kernel { series: series.to_owned(), expectation }
}

/// A Debian package that holds a kernel image for virtual machines.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    version: Vec<u32>,
    /// Newer releases keep the image in a package of its own, beside a metapackage `linux-image-*`.
    holds_only_the_image: bool,
    name: String,
}

/// `linux-image-6.1.0-50-cloud-amd64`, `linux-image-6.18.15+deb13-cloud-amd64`,
/// `linux-binary-7.3.4+deb13-cloud-amd64`; not the unsigned ones, nor metapackages without a
/// whole version.
fn parse(name: &str) -> Option<Package> {
    let (rest, holds_only_the_image) = match name.strip_prefix("linux-binary-") {
        Some(rest) => (rest, true),
        None => (name.strip_prefix("linux-image-")?, false),
    };
    let version = rest.strip_suffix("-cloud-amd64")?;
    let version = version.split('+').next()?;
    let numbers: Option<Vec<u32>> =
        version.split(['.', '-']).map(|number| number.parse().ok()).collect();
    let version = numbers.filter(|numbers| numbers.len() >= 3)?;
    Some(Package { version, holds_only_the_image, name: name.to_owned() })
}

/// The newest package of a series among `names`; or which series there are.
pub fn choose<'a>(
    series: &str,
    names: impl IntoIterator<Item = &'a str>,
) -> Result<String, Vec<String>> {
    let packages: Vec<Package> = names.into_iter().filter_map(parse).collect();
    let series_of = |package: &Package| format!("{}.{}", package.version[0], package.version[1]);
    let chosen =
        packages.iter().filter(|package| series == NEWEST || series_of(package) == series).max();
    chosen.map(|package| package.name.clone()).ok_or_else(|| {
        let mut there: Vec<(u32, u32)> =
            packages.iter().map(|package| (package.version[0], package.version[1])).collect();
        there.sort_unstable();
        there.dedup();
        there.into_iter().map(|(major, minor)| format!("{major}.{minor}")).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 10] = [
        "linux-image-6.1.0-9-cloud-amd64",
        "linux-image-6.1.0-50-cloud-amd64",
        "linux-image-6.1.0-50-cloud-amd64-unsigned",
        "linux-image-6.1.0-51-amd64",
        "linux-image-6.12-cloud-amd64",
        "linux-image-6.12.107+deb13-cloud-amd64",
        "linux-image-7.3.4+deb13-cloud-amd64",
        "linux-binary-7.3.4+deb13-cloud-amd64",
        "linux-image-cloud-amd64",
        "linux-image-amd64",
    ];

    #[test]
    fn the_newest_of_a_series_is_chosen_by_number() {
        assert_eq!(choose("6.1", NAMES).as_deref(), Ok("linux-image-6.1.0-50-cloud-amd64"));
        assert_eq!(choose("6.12", NAMES).as_deref(), Ok("linux-image-6.12.107+deb13-cloud-amd64"));
    }

    #[test]
    fn the_package_with_the_image_is_chosen_over_its_metapackage() {
        assert_eq!(choose(NEWEST, NAMES).as_deref(), Ok("linux-binary-7.3.4+deb13-cloud-amd64"));
    }

    #[test]
    fn a_series_that_is_not_there_tells_which_are() {
        assert_eq!(choose("6.6", NAMES), Err(["6.1", "6.12", "7.3"].map(str::to_owned).to_vec()));
    }

    #[test]
    fn only_the_lists_that_are_needed_are_asked_for() {
        assert_eq!(suites(&short()), ["bullseye", "bookworm"]);
        assert_eq!(suites(&[of_series("6.16")]), SUITES);
        assert_eq!(suites(&matrix()), SUITES);
    }
}
