//! A registry that is a directory, for the demo and for those who ship models as files.

/// A directory with a folder per registered model.
#[derive(Clone, Debug)]
pub struct Directory {}
