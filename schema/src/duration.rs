//! Durations as people write them: `100ms`, `55s`, `5m`, `1h30m`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration in text: whole numbers with the units `h`, `m`, `s` and `ms`, each at most once and in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HumanDuration(pub Duration);

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HumanDurationError {
    /// Another shape.
    #[error("is not a duration; write numbers with units, like 100ms, 55s, 5m, 1h30m or 720h")]
    Malformed,
    /// More than [`HumanDuration::LONGEST`].
    #[error("is too long; write at most 87600h, which is ten years")]
    TooLong,
}

impl HumanDuration {
    /// Ten years: nobody means more, and adding it to any clock is safe.
    pub const LONGEST: Duration = Duration::from_hours(87_600);

    /// Whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl FromStr for HumanDuration {
    type Err = HumanDurationError;

    fn from_str(text: &str) -> Result<Self, HumanDurationError> {
        let length = parse(text).ok_or(HumanDurationError::Malformed)?;
        if length > Self::LONGEST {
            return Err(HumanDurationError::TooLong);
        }
        Ok(Self(length))
    }
}

const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

fn parse(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    let mut last_unit = u64::MAX;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at(letters);
        let &(_, milliseconds) = UNITS.iter().find(|(name, _)| *name == unit)?;
        if milliseconds >= last_unit {
            return None;
        }
        last_unit = milliseconds;
        let part = number.parse::<u64>().ok()?.checked_mul(milliseconds)?;
        total = total.checked_add(Duration::from_millis(part))?;
        rest = after;
    }
    (!text.is_empty()).then_some(total)
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, milliseconds) in UNITS {
            if rest >= milliseconds {
                write!(f, "{}{unit}", rest / milliseconds)?;
                rest %= milliseconds;
            }
        }
        Ok(())
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    /// What is too long is read as ten years: an object that an API server took by its pattern has to stay readable.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.parse() {
            Ok(duration) => Ok(duration),
            Err(HumanDurationError::TooLong) => Ok(Self(Self::LONGEST)),
            Err(error) => Err(serde::de::Error::custom(format!("{text:?} {error}"))),
        }
    }
}

#[cfg(feature = "crd")]
impl schemars::JsonSchema for HumanDuration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "minLength": 2,
            "maxLength": 32,
            "pattern": "^([0-9]{1,5}h)?([0-9]{1,7}m)?([0-9]{1,9}s)?([0-9]{1,12}ms)?$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case("100ms", 100, "100ms")]
    #[case("55s", 55_000, "55s")]
    #[case("90m", 5_400_000, "1h30m")]
    #[case("1h30m", 5_400_000, "1h30m")]
    #[case("720h", 2_592_000_000, "720h")]
    #[case("0s", 0, "0s")]
    #[case("0ms", 0, "0s")]
    fn reads_and_writes(#[case] text: &str, #[case] milliseconds: u64, #[case] written: &str) {
        let duration: HumanDuration = text.parse().unwrap();
        assert_eq!(duration.0, Duration::from_millis(milliseconds));
        assert_eq!(duration.to_string(), written);
        assert_eq!(written.parse(), Ok(duration));
    }

    #[rstest::rstest]
    #[case("")]
    #[case("5")]
    #[case("s")]
    #[case("-5s")]
    #[case("1.5h")]
    #[case("5 m")]
    #[case("5min")]
    #[case("30d")]
    #[case("1m1h")]
    #[case("1s1s")]
    #[case("99999999999999999999s")]
    #[case("18446744073709551615h")]
    #[case("5µs")]
    fn refuses(#[case] text: &str) {
        assert_eq!(
            text.parse::<HumanDuration>(),
            Err(HumanDurationError::Malformed)
        );
    }

    #[test]
    fn what_an_api_server_took_stays_readable() {
        assert_eq!(
            "87601h".parse::<HumanDuration>(),
            Err(HumanDurationError::TooLong)
        );
        let read: HumanDuration = serde_json::from_str(r#""99999h""#).unwrap();
        assert_eq!(read.0, HumanDuration::LONGEST);
        assert!(serde_json::from_str::<HumanDuration>(r#""soon""#).is_err());
    }
}
