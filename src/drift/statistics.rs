//! SageMaker Model Monitor's `statistics.json` as a baseline: its ten buckets are bins.
//!
//! Containers of one's own write the file too, and people by hand: what is not there is not needed, and a feature whose
//! distribution cannot be used is as one without.

use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::axis::{BINS_MAX, CATEGORY_MAX_BYTES};
use super::baseline::{Baseline, Subject};

#[derive(Deserialize)]
struct File {
    dataset: Option<Dataset>,
    features: Vec<Feature>,
}

#[derive(Deserialize)]
struct Dataset {
    item_count: Option<f64>,
}

#[derive(Deserialize)]
struct Feature {
    name: String,
    numerical_statistics: Option<Numerical>,
    string_statistics: Option<Strings>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Common {
    num_present: f64,
    num_missing: f64,
}

#[derive(Deserialize)]
struct Numerical {
    #[serde(default)]
    common: Common,
    distribution: Option<Distribution>,
}

#[derive(Deserialize)]
struct Distribution {
    kll: Option<Buckets<Bucket>>,
}

#[derive(Deserialize)]
struct Buckets<T> {
    buckets: Vec<T>,
}

#[derive(Deserialize)]
struct Bucket {
    lower_bound: Bound,
    upper_bound: Bound,
    count: f64,
}

/// A number, or the word that stands for one that JSON cannot write.
#[derive(Deserialize)]
#[serde(untagged)]
enum Bound {
    Number(f64),
    Other(IgnoredAny),
}

#[derive(Deserialize)]
struct Strings {
    #[serde(default)]
    common: Common,
    distribution: Option<StringDistribution>,
}

#[derive(Deserialize)]
struct StringDistribution {
    categorical: Option<Buckets<Category>>,
}

#[derive(Deserialize)]
struct Category {
    value: String,
    count: f64,
}

/// Reads it. A feature without buckets is left out: it is compared with the first live rows.
pub(super) fn parse(text: &str) -> Result<Baseline, String> {
    let file: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let features: Vec<Subject> =
        file.features.into_iter().filter_map(|feature| subject(feature).transpose()).collect::<Result<_, _>>()?;
    let largest = features.iter().map(Subject::rows).max().unwrap_or(0);
    let rows = file.dataset.and_then(|dataset| dataset.item_count).map_or(Ok(largest), whole)?;
    Ok(Baseline { rows, features, prediction: None, score: None })
}

fn subject(feature: Feature) -> Result<Option<Subject>, String> {
    let name: Arc<str> = feature.name.into();
    if let Some(Numerical { common, distribution: Some(Distribution { kll: Some(kll) }) }) =
        feature.numerical_statistics
    {
        return kll.edges().map(|buckets| bins(&name, &common, &buckets)).transpose();
    }
    match feature.string_statistics {
        Some(Strings { common, distribution: Some(StringDistribution { categorical: Some(found) }) }) => {
            categories(&name, &common, found.buckets).map(Some)
        }
        _ => Ok(None),
    }
}

impl Buckets<Bucket> {
    /// The lower bound, the upper one and the count of each. `None` where there is none, or one has no bounds: a feature
    /// that was always missing.
    fn edges(&self) -> Option<Vec<(f64, f64, f64)>> {
        let of = |bucket: &Bucket| match (&bucket.lower_bound, &bucket.upper_bound) {
            (Bound::Number(lower), Bound::Number(upper)) => Some((*lower, *upper, bucket.count)),
            (Bound::Other(_), _) | (_, Bound::Other(_)) => None,
        };
        if self.buckets.is_empty() { None } else { self.buckets.iter().map(of).collect() }
    }
}

fn bins(name: &Arc<str>, common: &Common, buckets: &[(f64, f64, f64)]) -> Result<Subject, String> {
    let wrong = || format!("the buckets of `{name}` do not follow each other");
    let joined = buckets.windows(2).all(|pair| is_near(pair[0].1, pair[1].0));
    let (Some((first, ..)), true) = (buckets.first(), joined) else { return Err(wrong()) };
    let (missing, mut edges, mut counts) = (whole(common.num_missing)?, vec![*first], Vec::new());
    for (_, upper, count) in buckets {
        // A feature of one value has ten buckets of no width.
        if edges.len() > 1 && edges.last() == Some(upper) {
            *counts.last_mut().ok_or_else(wrong)? += whole(*count)?;
        } else {
            edges.push(*upper);
            counts.push(whole(*count)?);
        }
    }
    Subject::of_bins(Arc::clone(name), edges, counts, missing).ok_or_else(wrong)
}

/// Equal but for what two ways to compute a bound differ in.
fn is_near(one: f64, other: f64) -> bool {
    (one - other).abs() <= 1e-9 * one.abs().max(other.abs())
}

fn categories(name: &Arc<str>, common: &Common, mut found: Vec<Category>) -> Result<Subject, String> {
    found.retain(|category| category.value.len() <= CATEGORY_MAX_BYTES);
    found.sort_by(|a, b| b.count.total_cmp(&a.count));
    found.truncate(BINS_MAX);
    let known: Vec<(Arc<str>, u64)> = found
        .into_iter()
        .map(|category| Ok((category.value.into(), whole(category.count)?)))
        .collect::<Result<_, String>>()?;
    let present = whole(common.num_present)?;
    let others = present.saturating_sub(known.iter().map(|(_, count)| count).sum());
    let subject = Subject::of_categories(Arc::clone(name), known, others, whole(common.num_missing)?);
    subject.ok_or_else(|| format!("the categories of `{name}` are not distinct"))
}

/// A count, which Model Monitor writes as a float.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked on the line before")]
fn whole(count: f64) -> Result<u64, String> {
    let legal = (0.0..=1e15).contains(&count);
    if legal { Ok(count.round() as u64) } else { Err(format!("{count} is no count")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numerical(buckets: &str) -> String {
        format!(
            r#"{{"version":0.0,"dataset":{{"item_count":10}},"features":[{{"name":"Age","inferred_type":"Fractional",
            "numerical_statistics":{{"common":{{"num_present":9,"num_missing":1}},"mean":1.0,
            "distribution":{{"kll":{{"buckets":[{buckets}],"sketch":{{"parameters":{{"c":0.64,"k":2048}},"data":[[1.0]]}}}}}}}}}}]}}"#
        )
    }

    #[test]
    fn buckets_are_bins() {
        let text = numerical(
            r#"{"lower_bound":0,"upper_bound":5,"count":4.0},{"lower_bound":5,"upper_bound":9.5,"count":5.0}"#,
        );
        let baseline = parse(&text).unwrap();
        assert_eq!((baseline.rows, &baseline.features[0].counts[..]), (10, &[1, 0, 4, 5, 0][..]));
    }

    /// As Model Monitor writes it for a credit model: ten buckets, a sketch, categories; a column that was always missing,
    /// and one of no type.
    const REAL: &str = include_str!("../../tests/fixtures/statistics.json");

    #[test]
    fn a_file_of_model_monitor_is_read() {
        let baseline = parse(REAL).unwrap();
        let names: Vec<&str> = baseline.features.iter().map(|feature| &*feature.name).collect();
        assert_eq!((baseline.rows, names), (12_000, vec!["Age", "Annual_Income", "Num_of_Loan", "Occupation", "Flag"]));
        let counts: Vec<&[u64]> = baseline.features.iter().map(|feature| &feature.counts[..]).collect();
        assert_eq!(counts[0].iter().sum::<u64>(), 12_000);
        assert_eq!((counts[0].len(), counts[0][0]), (13, 120), "missing, below, ten buckets, above");
        assert_eq!(counts[3], [0, 3600, 3000, 2400, 1800, 1200]);
        assert_eq!(counts[4], [0, 0, 12_000, 0], "one value");
    }

    #[test]
    fn one_value_is_one_bin() {
        let bucket = r#"{"lower_bound":3,"upper_bound":3,"count":1}"#;
        assert_eq!(parse(&numerical(&[bucket; 10].join(","))).unwrap().features[0].counts, [1, 0, 10, 0]);
    }

    #[test]
    fn strings_are_categories_and_the_rest_is_other() {
        let text = r#"{"features":[{"name":"Job","inferred_type":"String","string_statistics":{"common":{"num_present":10,
            "num_missing":2},"distinct_count":3.0,"distribution":{"categorical":{"buckets":[{"value":"a","count":3},
            {"value":"b","count":5}]}}}},{"name":"Blob","inferred_type":"Unknown"}]}"#;
        let baseline = parse(text).unwrap();
        assert_eq!(baseline.features.len(), 1);
        assert_eq!((baseline.rows, &baseline.features[0].counts[..]), (12, &[2, 5, 3, 2][..]));
    }

    /// All that the schema of the documentation may leave out, and what containers write beyond it.
    #[test]
    fn what_is_not_there_is_not_needed() {
        let text = r#"{"version":0,"dataset":{},"created_by":"my container","features":[
            {"name":"Rate","inferred_type":"Integral","completeness":1.0,"numerical_statistics":{"distribution":{"kll":{
                "buckets":[{"lower_bound":0,"upper_bound":5,"count":4},{"lower_bound":5,"upper_bound":10,"count":6}]}}}},
            {"name":"Spread","inferred_type":"Fractional","numerical_statistics":{"common":{"num_present":9,
                "num_missing":1},"mean":4.5,"sum":40.5,"std_dev":1.0,"min":1.0,"max":9.0}},
            {"name":"Empty","inferred_type":"Fractional","numerical_statistics":{"common":{"num_present":0,
                "num_missing":10},"mean":"NaN","distribution":{"kll":{"buckets":[],"sketch":{"data":[]}}}}},
            {"name":"Never","inferred_type":"Fractional","numerical_statistics":{"common":{"num_present":0.0,
                "num_missing":10.0},"distribution":{"kll":{"buckets":[
                {"lower_bound":"NaN","upper_bound":"NaN","count":0.0}]}}}},
            {"name":"Own","inferred_type":"Fractional","numerical_statistics":{"distribution":{"q_0.5":4.0}}},
            {"name":"Job","inferred_type":"String","string_statistics":{"distinct_count":2.0,"distribution":{
                "categorical":{"buckets":[{"value":"a","count":7},{"value":"","count":3}]}}},"custom":{"any":[1,"b"]}},
            {"name":"Note","inferred_type":"String","string_statistics":{"common":{"num_present":10},
                "distinct_count":10.0}},
            {"name":"Blob","inferred_type":"Unknown"}]}"#;
        let baseline = parse(text).unwrap();
        let found = baseline.features.iter().map(|feature| (&*feature.name, &feature.counts[..]));
        let expected = [("Rate", &[0, 0, 4, 6, 0][..]), ("Job", &[0, 7, 3, 0])];
        assert_eq!(found.collect::<Vec<_>>(), expected);
        assert_eq!(baseline.rows, 10);
    }

    #[test]
    fn nonsense_is_refused() {
        for buckets in [
            r#"{"lower_bound":0,"upper_bound":5,"count":-4}"#,
            r#"{"lower_bound":5,"upper_bound":0,"count":4}"#,
            r#"{"lower_bound":0,"upper_bound":5,"count":4},{"lower_bound":6,"upper_bound":9,"count":4}"#,
        ] {
            assert!(parse(&numerical(buckets)).is_err(), "{buckets}");
        }
    }
}
