//! The MLflow REST client: what of it a gateway needs, 2.7 to 3.x.

/// An MLflow server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {}
