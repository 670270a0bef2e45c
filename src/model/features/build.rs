//! Signature and settings → [`Features`], once per version.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use super::super::signature::{Column, FEATURES_MAX, Kind, Signature, Tensor};
use super::{Categories, DefaultValue, Feature, Features, FeaturesError, List, Raw, Settings, Target, Unseen, value};

pub(super) fn features(signature: &Signature, settings: Settings) -> Result<Features, FeaturesError> {
    let Settings { coerce, rename, default, one_hot, unseen, columns } = settings;
    let Flat { columns, tensors } = flatten(signature, &columns)?;
    match columns.len() {
        0 => return Err(FeaturesError::Empty),
        1..=FEATURES_MAX => (),
        count => return Err(FeaturesError::TooMany(count)),
    }
    let mut list = group(&columns, &one_hot)?;
    let by_name = index(&list, |feature| &feature.name)?;
    set_fields(&mut list, &by_name, rename)?;
    set_defaults(&mut list, &by_name, default, unseen)?;
    Ok(Features {
        by_field: index(&list, |feature| &feature.field)?,
        categories: list.iter().map(categories).collect(),
        lists: lists(tensors, &list),
        list: list.into(),
        columns: columns.len(),
        coerce,
        unseen,
    })
}

/// A signature as columns, whatever it was.
struct Flat {
    columns: Vec<Column>,
    /// Tensors that may be sent as a list, with the columns they became.
    tensors: Vec<(Arc<str>, Range<usize>)>,
}

fn flatten(signature: &Signature, names: &[String]) -> Result<Flat, FeaturesError> {
    match signature {
        Signature::Columns(_) if !names.is_empty() => Err(FeaturesError::NotOneTensor),
        Signature::Columns(columns) => Ok(Flat { columns: columns.clone(), tensors: Vec::new() }),
        Signature::Tensors(tensors) if !names.is_empty() && tensors.len() != 1 => Err(FeaturesError::NotOneTensor),
        Signature::Tensors(tensors) => flatten_tensors(tensors, names),
    }
}

fn flatten_tensors(tensors: &[Tensor], names: &[String]) -> Result<Flat, FeaturesError> {
    let mut flat = Flat { columns: Vec::new(), tensors: Vec::new() };
    for tensor in tensors {
        let width = row_width(tensor, names)?;
        let first = flat.columns.len();
        if first.saturating_add(width) > FEATURES_MAX {
            return Err(FeaturesError::TooMany(first.saturating_add(width)));
        }
        flat.columns.extend((0..width).map(|element| Column {
            name: element_name(tensor, width, names, element),
            kind: tensor.kind,
            required: true,
        }));
        if !tensor.shape.is_empty() {
            flat.tensors.push((Arc::clone(&tensor.name), first..first + width));
        }
    }
    Ok(flat)
}

fn row_width(tensor: &Tensor, names: &[String]) -> Result<usize, FeaturesError> {
    let wanted = match tensor.shape.as_slice() {
        [] => 1,
        [Some(width)] => *width,
        [None] if names.is_empty() => return Err(FeaturesError::NoWidth(tensor.name.to_string())),
        [None] => names.len(),
        more => {
            let dimensions = more.len() + 1;
            return Err(FeaturesError::Dimensions { tensor: tensor.name.to_string(), dimensions });
        }
    };
    if !names.is_empty() && names.len() != wanted {
        return Err(FeaturesError::WrongColumns { tensor: tensor.name.to_string(), given: names.len(), wanted });
    }
    Ok(wanted)
}

fn element_name(tensor: &Tensor, width: usize, names: &[String], element: usize) -> Arc<str> {
    match names.get(element) {
        Some(name) => name.as_str().into(),
        None if width == 1 => Arc::clone(&tensor.name),
        None => format!("{}_{element}", tensor.name).into(),
    }
}

/// One feature per column, except where columns are a one-hot group; the group stands where its first column stood.
fn group(columns: &[Column], one_hot: &[String]) -> Result<Vec<Feature>, FeaturesError> {
    let mut groups: BTreeMap<&str, Vec<(Arc<str>, usize)>> = BTreeMap::new();
    for (position, column) in columns.iter().enumerate() {
        if let Some((group, category)) = group_of(&column.name, one_hot) {
            if column.kind == Kind::Text {
                return Err(FeaturesError::NotOneHot(column.name.to_string()));
            }
            groups.entry(group).or_default().push((category.into(), position));
        }
    }
    if let Some(column) = one_hot.iter().find(|group| !groups.contains_key(group.as_str())) {
        return Err(FeaturesError::NoSuchColumn { setting: "one_hot", column: column.clone() });
    }
    let mut list = Vec::with_capacity(columns.len());
    for (position, column) in columns.iter().enumerate() {
        match group_of(&column.name, one_hot) {
            None => list.push(feature(&column.name, column.kind, column.required, Target::Column(position))),
            Some((group, _)) => {
                let first_of_group = groups.remove(group).map(Target::OneHot);
                list.extend(first_of_group.map(|target| feature(&group.into(), Kind::Text, true, target)));
            }
        }
    }
    Ok(list)
}

/// The group a column belongs to, and its category. `Age_Group_Young` is of `Age_Group` even if there is a group `Age`.
fn group_of<'a>(column: &'a str, one_hot: &'a [String]) -> Option<(&'a str, &'a str)> {
    one_hot
        .iter()
        .filter_map(|group| Some((group.as_str(), column.strip_prefix(group.as_str())?.strip_prefix('_')?)))
        .max_by_key(|(group, _)| group.len())
}

fn feature(name: &Arc<str>, kind: Kind, required: bool, target: Target) -> Feature {
    Feature { name: Arc::clone(name), field: Arc::clone(name), kind, required, default: None, target }
}

type Index = HashMap<Arc<str>, usize, foldhash::fast::RandomState>;

fn index(list: &[Feature], name: impl Fn(&Feature) -> &Arc<str>) -> Result<Index, FeaturesError> {
    let mut index = Index::default();
    for (place, feature) in list.iter().enumerate() {
        if index.insert(Arc::clone(name(feature)), place).is_some() {
            return Err(FeaturesError::Twice(name(feature).to_string()));
        }
    }
    Ok(index)
}

fn set_fields(list: &mut [Feature], by_name: &Index, rename: BTreeMap<String, String>) -> Result<(), FeaturesError> {
    for (field, name) in rename {
        let feature = &mut list[place(by_name, "rename", &name)?];
        if feature.field != feature.name {
            return Err(FeaturesError::RenamedTwice(name));
        }
        feature.field = field.into();
    }
    Ok(())
}

fn set_defaults(
    list: &mut [Feature],
    by_name: &Index,
    default: BTreeMap<String, DefaultValue>,
    unseen: Unseen,
) -> Result<(), FeaturesError> {
    for (column, default) in default {
        let feature = &mut list[place(by_name, "default", &column)?];
        if unseen == Unseen::Refuse && is_unseen(feature, &default) {
            return Err(FeaturesError::WrongDefault { column, expected: "one of its categories" });
        }
        let cell = value::cell(feature.kind, raw(&default), false);
        feature.default = Some(cell.map_err(|expected| FeaturesError::WrongDefault { column, expected })?);
        feature.required = false;
    }
    Ok(())
}

fn place(by_name: &Index, setting: &'static str, name: &str) -> Result<usize, FeaturesError> {
    by_name.get(name).copied().ok_or_else(|| FeaturesError::NoSuchColumn { setting, column: name.to_owned() })
}

fn is_unseen(feature: &Feature, default: &DefaultValue) -> bool {
    match (&feature.target, default) {
        (Target::OneHot(known), DefaultValue::Text(category)) => !known.iter().any(|(known, _)| **known == **category),
        _ => false,
    }
}

fn raw(default: &DefaultValue) -> Raw<'_> {
    match default {
        DefaultValue::Boolean(value) => Raw::Boolean(*value),
        DefaultValue::Integer(value) => Raw::Integer(*value),
        DefaultValue::Float(value) => Raw::Float(*value),
        DefaultValue::Text(value) => Raw::Text(value),
    }
}

fn categories(feature: &Feature) -> Option<Categories> {
    match &feature.target {
        Target::Column(_) => None,
        Target::OneHot(categories) => Some(categories.iter().map(|(category, _)| Arc::clone(category)).collect()),
    }
}

/// The tensors a caller may send as a list: those whose every element is still a feature of its own.
fn lists(tensors: Vec<(Arc<str>, Range<usize>)>, list: &[Feature]) -> Box<[(Arc<str>, List)]> {
    tensors
        .into_iter()
        .filter_map(|(field, columns)| {
            let first = list.iter().position(|feature| feature.target == Target::Column(columns.start))?;
            let elements = list.get(first..first + columns.len())?;
            let whole = elements.iter().zip(columns).all(|(feature, column)| feature.target == Target::Column(column));
            whole.then_some((field, List { first, len: elements.len() }))
        })
        .collect()
}
