//! What a blob's name says about its content: the format of a COPY without `FORMAT`, and gzip.

use crate::http::failure::{Failure, Kind};

/// The formats that a suffix can stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Csv,
    Text,
}

impl Format {
    /// The format a name ends with; Microsoft's error for every other ending. Endings that stand for
    /// one value per blob (json, xml, txt) or for Parquet are among the others.
    pub fn inferred(name: &str) -> Result<Self, Failure> {
        let ending = ending(name);
        match ending.strip_suffix(".gz").unwrap_or(&ending) {
            "csv" => Ok(Self::Csv),
            "tsv" => Ok(Self::Text),
            _ => Err(Failure::new(
                Kind::InvalidValue,
                format!(
                    "azure_storage: could not infer file encoding from extension: '{ending}', use a supported \
                     extension [csv, csv.gz, tsv, tsv.gz, json, json.gz, xml, xml.gz, txt, txt.gz, parquet], or \
                     specify the decoder argument if you are using blob_get or format if using COPY FROM/TO"
                ),
            )
            .detail("COPY infers csv, csv.gz, tsv and tsv.gz.")
            .hint("Write WITH (FORMAT csv), WITH (FORMAT text) or WITH (FORMAT binary).")),
        }
    }

    /// The format as COPY's option names it.
    pub fn option(self) -> &'static std::ffi::CStr {
        match self {
            Self::Csv => c"csv",
            Self::Text => c"text",
        }
    }
}

/// Whether the blob is compressed, whatever its format.
pub fn is_gzip(name: &str) -> bool {
    let ending = ending(name);
    ending == "gz" || ending.ends_with(".gz")
}

/// The last part's extension in lower case, two of them when the last is `gz`: `csv`, `csv.gz`.
fn ending(name: &str) -> String {
    let file = name.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let Some((rest, last)) = file.rsplit_once('.') else {
        return String::new();
    };
    match (last, rest.rsplit_once('.')) {
        ("gz", Some((_, inner))) => format!("{inner}.gz"),
        _ => last.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suffix_decides() {
        for (name, format, gzip) in [
            ("a.csv", Format::Csv, false),
            ("in/a.b.csv.gz", Format::Csv, true),
            ("A.CSV", Format::Csv, false),
            ("a.tsv", Format::Text, false),
            ("a.tsv.gz", Format::Text, true),
        ] {
            assert_eq!(Format::inferred(name), Ok(format), "{name}");
            assert_eq!(is_gzip(name), gzip, "{name}");
        }
    }

    #[test]
    fn every_other_suffix_is_microsofts_error() {
        for (name, shown) in [
            ("a.json", "'json'"),
            ("a.txt.gz", "'txt.gz'"),
            ("csv", "''"),
            ("a.csv/b", "''"),
            ("a.csv.zst", "'zst'"),
            ("a.gz", "'gz'"),
            ("a.parquet", "'parquet'"),
        ] {
            let refused = Format::inferred(name).expect_err(name);
            assert_eq!(refused.kind, Kind::InvalidValue);
            assert!(refused.message.contains(&format!("extension: {shown}, use")), "{}", refused.message);
        }
        assert!(is_gzip("a.gz") && is_gzip("a.bin.GZ") && !is_gzip("gz"));
    }
}
