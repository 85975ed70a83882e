//! That certificates cannot be issued, and why.
//!
//! Invariant: it begins with the first failure, keeps what that one said, and ends with the first success, so that a
//! provider that is down for an hour is one piece of news, not one for each attempt.

use tokio::sync::watch;

use super::IssueError;

/// What stands in the way of new certificates. Those in use go on until they expire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Whose certificate was the first that could not be issued, and why.
    pub message: String,
    /// The reason of an Event about it.
    pub reason: &'static str,
}

/// Takes down how one attempt ended.
pub(super) fn note<T>(trouble: &watch::Sender<Option<Trouble>>, name: &str, outcome: &Result<T, IssueError>) {
    trouble.send_if_modified(|trouble| match (outcome, trouble.is_some()) {
        (Ok(_), true) => {
            *trouble = None;
            true
        }
        (Err(error), false) => {
            *trouble = Some(Trouble {
                message: format!("the certificate of {name}: {error}"),
                reason: error.reason(),
            });
            true
        }
        _ => false,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_outage_is_one_piece_of_news() {
        let (sender, mut seen) = watch::channel(None);
        let down = |why: &str| Err::<(), _>(IssueError::Provider(why.to_owned()));
        note(&sender, "a", &Ok(()));
        assert!(!seen.has_changed().unwrap());
        note(&sender, "a", &down("no route"));
        let told = seen.borrow_and_update().clone().unwrap();
        assert!(
            told.message.contains("of a: ") && told.message.contains("no route"),
            "{told:?}"
        );
        assert_eq!(told.reason, "CertificateIssuanceFailure");
        note(&sender, "b", &down("still no route"));
        assert!(!seen.has_changed().unwrap());
        note(&sender, "b", &Ok(()));
        assert_eq!(*seen.borrow_and_update(), None);
    }
}
