//! Which texts are categories of their own: the first so many of each feature, agreed among all threads.
//!
//! Callers write the texts, so they are bounded here in number and in length; the rest are [`OTHER`].

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use foldhash::fast::RandomState;
use parking_lot::{Mutex, RwLock};

use crate::model::{Identity, ModelName};

/// The category of all texts that have none of their own.
pub(super) const OTHER: &str = "__other__";

/// The category of the empty text, because neither CloudWatch nor Prometheus knows an empty label.
pub(super) const EMPTY: &str = "__empty__";

/// A longer text is prose, not a category. Percent-encoded it still fits a dimension of CloudWatch.
const CATEGORY_MAX_BYTES: usize = 256;

/// What a text is a category of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    /// What the model predicts.
    Class,
    /// One of its features.
    Feature(Arc<str>),
}

/// The vocabularies of all models.
#[derive(Debug)]
pub(super) struct Vocabularies {
    max_names: usize,
    max_vocabularies: usize,
    known: Mutex<HashMap<(ModelName, Subject), Known>>,
}

#[derive(Debug)]
struct Known {
    vocabulary: Arc<Vocabulary>,
    /// The version that used it last. When that is gone, so may the vocabulary be.
    holder: Weak<Identity>,
}

impl Vocabularies {
    /// None yet; each may come to hold `max_names`. Above `max_vocabularies`, those that only retired versions used
    /// [make room](Self::make_room).
    pub(super) fn new(max_names: usize, max_vocabularies: usize) -> Self {
        Self { max_names, max_vocabularies, known: Mutex::default() }
    }

    /// The vocabulary of one subject of a model, shared by its versions.
    pub(super) fn of(&self, id: &Arc<Identity>, subject: Subject) -> Arc<Vocabulary> {
        let mut known = self.known.lock();
        let known = known.entry((id.name.clone(), subject)).or_insert_with(|| Known {
            vocabulary: Arc::new(Vocabulary { max_names: self.max_names, names: RwLock::default() }),
            holder: Weak::new(),
        });
        known.holder = Arc::downgrade(id);
        Arc::clone(&known.vocabulary)
    }

    /// Forgets the vocabularies of retired versions, if there are too many.
    pub(super) fn make_room(&self) {
        let mut known = self.known.lock();
        if known.len() > self.max_vocabularies {
            known.retain(|_, known| known.holder.strong_count() > 0);
        }
    }
}

/// The categories of one feature, in no order.
#[derive(Debug)]
pub(super) struct Vocabulary {
    max_names: usize,
    names: RwLock<HashSet<Arc<str>, RandomState>>,
}

impl Vocabulary {
    /// The category `text` is counted under, if it has one of its own.
    fn find(&self, text: &str) -> Option<Arc<str>> {
        self.names.read().get(text).cloned()
    }

    /// As [`find`](Self::find), and makes a category of a new text while there is room.
    fn find_or_learn(&self, text: &str) -> Option<Arc<str>> {
        let names = self.names.read();
        if let Some(name) = names.get(text) {
            return Some(Arc::clone(name));
        }
        let is_full = names.len() >= self.max_names;
        drop(names);
        if is_full { None } else { self.learn(text) }
    }

    fn learn(&self, text: &str) -> Option<Arc<str>> {
        if text.len() > CATEGORY_MAX_BYTES || text == OTHER {
            return None;
        }
        let mut names = self.names.write();
        // Another thread may have been faster, with this text or with the last free place.
        if let Some(name) = names.get(text) {
            return Some(Arc::clone(name));
        }
        if names.len() >= self.max_names {
            return None;
        }
        let name: Arc<str> = text.into();
        names.insert(Arc::clone(&name));
        Some(name)
    }
}

/// How often each category came, in one window.
#[derive(Debug)]
pub(super) struct Categories {
    vocabulary: Arc<Vocabulary>,
    /// Whether callers' texts may become categories; not where the model's own list is complete.
    is_open: bool,
    counts: HashMap<Arc<str>, u64, RandomState>,
    other: u64,
}

impl Categories {
    /// Categories that are learnt from what comes.
    pub(super) fn open(vocabulary: Arc<Vocabulary>) -> Self {
        Self { vocabulary, is_open: true, counts: HashMap::default(), other: 0 }
    }

    /// Only `names` are categories, so that no caller can fill their places with others.
    pub(super) fn closed<'a>(vocabulary: Arc<Vocabulary>, names: impl IntoIterator<Item = &'a str>) -> Self {
        for name in names {
            vocabulary.find_or_learn(name);
        }
        Self { is_open: false, ..Self::open(vocabulary) }
    }

    /// Counts `text` once.
    pub(super) fn add(&mut self, text: &str) {
        let text = if text.is_empty() { EMPTY } else { text };
        if let Some(count) = self.counts.get_mut(text) {
            *count += 1;
            return;
        }
        let name = if self.is_open { self.vocabulary.find_or_learn(text) } else { self.vocabulary.find(text) };
        match name {
            Some(name) => {
                self.counts.insert(name, 1);
            }
            None => self.other += 1,
        }
    }

    /// Every category that came, with how often; [`OTHER`] among them.
    pub(super) fn into_counts(self) -> impl Iterator<Item = (Arc<str>, u64)> {
        let other = (self.other > 0).then(|| (OTHER.into(), self.other));
        self.counts.into_iter().chain(other)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::{Digest, Version};

    fn identity() -> Arc<Identity> {
        Arc::new(Identity::new("m".parse().unwrap(), Version(1), Digest([0; 32]), None))
    }

    fn vocabularies(max_names: usize) -> Vocabularies {
        Vocabularies::new(max_names, 8)
    }

    fn counts(categories: Categories) -> BTreeMap<String, u64> {
        categories.into_counts().map(|(name, count)| (name.to_string(), count)).collect()
    }

    fn check_open(max_names: usize, texts: &[&str], expected: &[(&str, u64)]) {
        let mut categories = Categories::open(vocabularies(max_names).of(&identity(), Subject::Class));
        for text in texts {
            categories.add(text);
        }
        let expected = expected.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        assert_eq!(counts(categories), expected);
    }

    #[test]
    fn the_first_so_many_have_a_name_and_the_rest_are_other() {
        check_open(2, &["a", "b", "c", "a", "d"], &[("a", 2), ("b", 1), (OTHER, 2)]);
    }

    #[test]
    fn the_empty_text_has_a_name_and_the_name_of_the_rest_cannot_be_taken() {
        check_open(2, &["", "", OTHER, "x"], &[(EMPTY, 2), ("x", 1), (OTHER, 1)]);
    }

    #[test]
    fn prose_is_no_category() {
        let longest = "x".repeat(CATEGORY_MAX_BYTES);
        check_open(9, &[&longest, &format!("{longest}x")], &[(&longest, 1), (OTHER, 1)]);
    }

    #[test]
    fn threads_agree_on_the_names() {
        let (all, id) = (vocabularies(1), identity());
        let mut here = Categories::open(all.of(&id, Subject::Class));
        let mut there = Categories::open(all.of(&id, Subject::Class));
        here.add("first");
        there.add("second");
        there.add("first");
        assert_eq!(counts(there), [("first".to_owned(), 1), (OTHER.to_owned(), 1)].into());
    }

    #[test]
    fn a_closed_list_cannot_be_filled_by_callers() {
        let vocabulary = vocabularies(3).of(&identity(), Subject::Feature("job".into()));
        let mut categories = Categories::closed(vocabulary, ["Doctor", "Lawyer"]);
        for text in ["junk", "Lawyer", "more junk", "Doctor", "Lawyer"] {
            categories.add(text);
        }
        let expected = [("Doctor".to_owned(), 1), ("Lawyer".to_owned(), 2), (OTHER.to_owned(), 2)];
        assert_eq!(counts(categories), expected.into());
    }

    #[test]
    fn vocabularies_of_retired_versions_make_room() {
        let all = Vocabularies::new(1, 2);
        for number in 0..100 {
            all.of(&identity(), Subject::Feature(number.to_string().into()));
            all.make_room();
        }
        assert!(all.known.lock().len() <= 2);
    }
}
