//! Sizes and shares as people write them in Kubernetes and in our configuration: `50Gi`, `1.5G`, `4096`; `10%`.

use std::fmt;
use std::str::FromStr;

/// A number of bytes. Parses Kubernetes quantities without exponents; prints as the shortest one that is exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

/// Why a text is not a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ByteSizeError {
    /// Not a number with a known unit.
    #[error("a size is a number of bytes or has a unit, like 8Mi, 50Gi, 2Ti or 500M")]
    Malformed,
    /// More than 2^64 - 1 bytes.
    #[error("a size is less than 16Ei")]
    TooLarge,
}

/// Units and their bytes, binary ones first and largest first: printing takes the first that divides.
const UNITS: [(&str, u64); 12] = [
    ("Ei", 1 << 60),
    ("Pi", 1 << 50),
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
    ("E", 1_000_000_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("T", 1_000_000_000_000),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("k", 1_000),
];

/// Digits after the decimal point that are read; more would be less than a byte of an exbibyte's unit.
const MAX_FRACTION: usize = 18;

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    /// A fraction of a byte is rounded up, as Kubernetes does.
    fn from_str(text: &str) -> Result<Self, ByteSizeError> {
        let (number, unit) = UNITS
            .iter()
            .find_map(|(suffix, bytes)| Some((text.strip_suffix(suffix)?, *bytes)))
            .unwrap_or((text, 1));
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let digits =
            |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.len() > MAX_FRACTION {
            return Err(ByteSizeError::Malformed);
        }
        let whole: u64 = whole.parse().map_err(|_| ByteSizeError::TooLarge)?;
        let fraction_unit = fraction.bytes().fold(1_u128, |unit, _| unit * 10);
        let fraction: u128 = fraction.parse().map_err(|_| ByteSizeError::Malformed)?;
        let bytes = u128::from(whole) * u128::from(unit)
            + (fraction * u128::from(unit)).div_ceil(fraction_unit);
        u64::try_from(bytes)
            .map(Self)
            .map_err(|_| ByteSizeError::TooLarge)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS
            .iter()
            .find(|(_, bytes)| self.0 != 0 && self.0.is_multiple_of(*bytes));
        match unit {
            Some((suffix, bytes)) => write!(f, "{}{suffix}", self.0 / bytes),
            None => write!(f, "{}", self.0),
        }
    }
}

/// A share between nothing and all, in whole percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ratio(u8);

/// The text is not a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a share is whole percent from 0% to 100%, like 10%")]
pub struct RatioError;

impl Ratio {
    /// `None` above 100.
    pub const fn from_percent(percent: u8) -> Option<Self> {
        if percent <= 100 {
            Some(Self(percent))
        } else {
            None
        }
    }

    /// Percent, 0 to 100.
    pub fn percent(self) -> u8 {
        self.0
    }

    /// This share of `whole`, rounded down.
    pub fn of(self, whole: u64) -> u64 {
        // Divided first, so that it cannot overflow; the rest adds what the division lost.
        whole / 100 * u64::from(self.0) + whole % 100 * u64::from(self.0) / 100
    }
}

impl FromStr for Ratio {
    type Err = RatioError;

    fn from_str(text: &str) -> Result<Self, RatioError> {
        text.strip_suffix('%')
            .filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|number| number.parse().ok())
            .and_then(Self::from_percent)
            .ok_or(RatioError)
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[rstest::rstest]
    #[case("0", 0, "0")]
    #[case("4096", 4096, "4Ki")]
    #[case("16Ki", 16 << 10, "16Ki")]
    #[case("1.5Gi", 3 << 29, "1536Mi")]
    #[case("500M", 500_000_000, "500M")]
    #[case("2Ti", 2 << 40, "2Ti")]
    #[case("0.1", 1, "1")]
    #[case("18446744073709551615", u64::MAX, "18446744073709551615")]
    fn sizes(#[case] text: &str, #[case] bytes: u64, #[case] printed: &str) {
        let size: ByteSize = text.parse().unwrap();
        assert_eq!(size, ByteSize(bytes));
        assert_eq!(size.to_string(), printed);
    }

    #[rstest::rstest]
    #[case("", ByteSizeError::Malformed)]
    #[case("Gi", ByteSizeError::Malformed)]
    #[case("-1", ByteSizeError::Malformed)]
    #[case("1.", ByteSizeError::Malformed)]
    #[case("1.2.3", ByteSizeError::Malformed)]
    #[case("50GiB", ByteSizeError::Malformed)]
    #[case("50 Gi", ByteSizeError::Malformed)]
    #[case("1e3", ByteSizeError::Malformed)]
    #[case("500m", ByteSizeError::Malformed)]
    #[case("16Ei", ByteSizeError::TooLarge)]
    #[case("18446744073709551616", ByteSizeError::TooLarge)]
    fn not_sizes(#[case] text: &str, #[case] why: ByteSizeError) {
        assert_eq!(text.parse::<ByteSize>(), Err(why));
    }

    #[test]
    fn ratios() {
        let tenth: Ratio = "10%".parse().unwrap();
        assert_eq!(
            (tenth.of(1_000), tenth.of(9), tenth.to_string()),
            (100, 0, "10%".to_owned())
        );
        assert_eq!("100%".parse::<Ratio>().unwrap().of(u64::MAX), u64::MAX);
        for text in ["", "%", "10", "101%", "+5%", "1.5%", "1000%"] {
            assert_eq!(text.parse::<Ratio>(), Err(RatioError), "{text}");
        }
    }

    proptest! {
        #[test]
        fn sizes_print_what_parses_back(bytes: u64, shift in 0_u32..64) {
            let size = ByteSize(bytes >> shift << (shift / 2));
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn parsing_is_total(text in "[0-9.]{0,30}[a-zA-Z%]{0,3}") {
            let _ = text.parse::<ByteSize>();
            let _ = text.parse::<Ratio>();
        }
    }
}
