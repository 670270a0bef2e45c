//! One look at a shared store before a gateway relies on it.

use std::time::Duration;

use redis::{AsyncCommands as _, ErrorKind, InfoDict, RedisError, ServerErrorKind};
use tokio::time::Instant;

use super::{Failure, Redis, client, connect};

/// The longest a look may take. A gateway that serves is far less patient.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a gateway should not rely on a store.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// Nobody answers there, or not as Redis does.
    #[error("{0}")]
    Unreachable(String),
    /// The user or password is wrong, or the user may not do what a gateway does.
    #[error("{0}")]
    NotAllowed(String),
    /// Counters would be thrown away, and callers get more than their quota.
    #[error("its maxmemory-policy is {0}, which throws counters away when memory runs short")]
    Evicts(String),
}

impl Redis {
    /// Writes a key of its own and deletes it, and asks whether the store evicts keys, where it may.
    ///
    /// # Errors
    /// When a gateway should not rely on this store.
    pub async fn look(&self) -> Result<(), Unfit> {
        let client = client(self).map_err(|error| Unfit::Unreachable(error.to_string()))?;
        let until = Instant::now() + PATIENCE;
        let mut connection = connect(&client, until).await.map_err(unfit)?;
        let looking = async {
            let key = format!("{}:doctor", self.namespace);
            let () = connection.hset(&key, "looked", 1).await?;
            let () = connection.del(&key).await?;
            // The user of a gateway need not have this right; then it stays unknown.
            let memory = redis::cmd("INFO").arg("memory").query_async::<InfoDict>(&mut connection).await;
            Ok(memory.ok().and_then(|memory| memory.get::<String>("maxmemory_policy")))
        };
        let answer = tokio::time::timeout_at(until, looking).await.map_err(|_| unfit(Failure::Late))?;
        match answer.map_err(|error: RedisError| unfit(error.into()))? {
            Some(policy) if policy != "noeviction" => Err(Unfit::Evicts(policy)),
            _ => Ok(()),
        }
    }
}

fn unfit(failure: Failure) -> Unfit {
    match failure {
        Failure::Redis(error) if is_refusal(&error) => Unfit::NotAllowed(error.to_string()),
        failure => Unfit::Unreachable(failure.to_string()),
    }
}

fn is_refusal(error: &RedisError) -> bool {
    let code = error.code().unwrap_or_default();
    error.kind() == ErrorKind::AuthenticationFailed
        || error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm)
        || matches!(code, "NOAUTH" | "WRONGPASS" | "NOPERM")
}
