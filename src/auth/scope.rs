//! What a key may do, of what its plan allows: by action and by model.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// One thing a key may do, written `predict:<model>`, `predict:*`, `feedback:<model>`, `feedback:*` or `usage:read`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Predictions of one model, or of every model.
    Predict(Option<Arc<str>>),
    /// Labels of the answers of one model, or of every model.
    Feedback(Option<Arc<str>>),
    /// Its own plan, used and left.
    ReadUsage,
}

/// All that a key may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Scopes {
    /// Whatever its plan allows.
    #[default]
    All,
    /// These, as far as its plan allows them.
    Only(Arc<[Scope]>),
}

/// A text that is no scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected `predict:<model>`, `predict:*`, `feedback:<model>`, `feedback:*` or `usage:read`")]
pub struct NoScope;

impl Scopes {
    /// These scopes; none at all is [`Scopes::All`].
    #[must_use]
    pub fn of(scopes: Vec<Scope>) -> Self {
        if scopes.is_empty() { Self::All } else { Self::Only(scopes.into()) }
    }

    /// Whether predictions of `model` are among them.
    pub(super) fn predict(&self, model: &str) -> bool {
        self.any(|scope| match scope {
            Scope::Predict(Some(only)) => **only == *model,
            Scope::Predict(None) => true,
            Scope::Feedback(_) | Scope::ReadUsage => false,
        })
    }

    /// Whether labels of the answers of `model` are among them.
    pub(super) fn label(&self, model: &str) -> bool {
        self.any(|scope| match scope {
            Scope::Feedback(only) => only.as_deref().is_none_or(|only| only == model),
            Scope::Predict(_) | Scope::ReadUsage => false,
        })
    }

    /// Whether labels of any answers are among them.
    pub(super) fn label_any(&self) -> bool {
        self.any(|scope| matches!(scope, Scope::Feedback(_)))
    }

    /// Whether the caller may read its own usage.
    pub(super) fn read_usage(&self) -> bool {
        self.any(|scope| *scope == Scope::ReadUsage)
    }

    fn any(&self, allows: impl Fn(&Scope) -> bool) -> bool {
        match self {
            Self::All => true,
            Self::Only(scopes) => scopes.iter().any(allows),
        }
    }
}

impl FromStr for Scope {
    type Err = NoScope;

    fn from_str(text: &str) -> Result<Self, NoScope> {
        let named = |model: &str| !model.is_empty() && !model.contains(|c: char| c.is_whitespace() || c == '*');
        match text.split_once(':') {
            Some(("predict", "*")) => Ok(Self::Predict(None)),
            Some(("predict", model)) if named(model) => Ok(Self::Predict(Some(model.into()))),
            Some(("feedback", "*")) => Ok(Self::Feedback(None)),
            Some(("feedback", model)) if named(model) => Ok(Self::Feedback(Some(model.into()))),
            Some(("usage", "read")) => Ok(Self::ReadUsage),
            _ => Err(NoScope),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Predict(model) => write!(f, "predict:{}", model.as_deref().unwrap_or("*")),
            Self::Feedback(model) => write!(f, "feedback:{}", model.as_deref().unwrap_or("*")),
            Self::ReadUsage => f.write_str("usage:read"),
        }
    }
}

/// Separated by spaces; [`Scopes::All`] is empty.
impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Only(scopes) = self else { return Ok(()) };
        for (index, scope) in scopes.iter().enumerate() {
            let separator = if index == 0 { "" } else { " " };
            write!(f, "{separator}{scope}")?;
        }
        Ok(())
    }
}

impl FromStr for Scopes {
    type Err = NoScope;

    fn from_str(text: &str) -> Result<Self, NoScope> {
        text.split_whitespace().map(str::parse).collect::<Result<_, _>>().map(Self::of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, models: &[&str], usage: bool) {
        let scopes: Scopes = text.parse().unwrap();
        let allowed: Vec<_> = ["credit", "fraud"].into_iter().filter(|model| scopes.predict(model)).collect();
        assert_eq!((&allowed[..], scopes.read_usage()), (models, usage), "{text}");
        assert_eq!(scopes.to_string(), text);
    }

    #[test]
    fn scopes_allow_what_they_name() {
        check("", &["credit", "fraud"], true);
        check("predict:*", &["credit", "fraud"], false);
        check("predict:credit", &["credit"], false);
        check("usage:read", &[], true);
        check("predict:fraud usage:read", &["fraud"], true);
    }

    #[test]
    fn what_is_no_action_is_no_scope() {
        for text in ["predict", "predict:", "predict:a b", "predict:cre*", "usage:write", "*", "admin:keys"] {
            assert_eq!(text.parse::<Scope>(), Err(NoScope), "{text}");
        }
    }
}
