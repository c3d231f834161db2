//! Who vouches for the Cluster Agents of TriggerAuthentications that do not say: a file that is
//! re-read, since CAs are renewed.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{AgentText, CredentialsError};

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Certificates in PEM, which may change; `None` is those of the system.
#[derive(Clone, Debug)]
pub struct AgentCa(watch::Receiver<Option<Arc<str>>>);

/// Looks after the file.
pub(super) struct CaKeeper {
    ca: AgentText,
    known: watch::Sender<Option<Arc<str>>>,
}

impl AgentCa {
    /// As they are now.
    pub(super) fn now(&self) -> Option<Arc<str>> {
        self.0.borrow().clone()
    }
}

impl From<Option<Arc<str>>> for AgentCa {
    /// For ever.
    fn from(pem: Option<Arc<str>>) -> Self {
        Self(watch::channel(pem).1)
    }
}

impl CaKeeper {
    pub(super) async fn start(ca: AgentText) -> Result<(AgentCa, Self), CredentialsError> {
        let (known, receiver) = watch::channel(Some(ca.authorities().await?));
        Ok((AgentCa(receiver), Self { ca, known }))
    }

    /// Until `shutdown`. What cannot be read leaves the last ones in use.
    pub(super) async fn run(self, shutdown: CancellationToken) {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut complaint = None;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = look.tick() => {}
            }
            match self.ca.authorities().await {
                Ok(pem) => {
                    complaint = None;
                    let is_news = self.known.send_if_modified(|known| {
                        let is_news = known.as_ref() != Some(&pem);
                        *known = Some(pem);
                        is_news
                    });
                    if is_news {
                        tracing::info!("Cluster Agents are verified by the new CA from now on");
                    }
                }
                Err(error) if complaint.as_ref() != Some(&error) => {
                    tracing::warn!(%error, "the Cluster Agents' last CA stays in use");
                    complaint = Some(error);
                }
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn pem() -> String {
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap().cert.pem()
    }

    #[tokio::test]
    async fn a_ca_that_is_renewed_counts_and_what_is_none_does_not() {
        // Another test may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let file = tempfile::NamedTempFile::new().unwrap();
        let write = |text: &str| fs::write(file.path(), text).unwrap();
        let (first, second) = (pem(), pem());
        write(&first);
        let ca = AgentText::File(file.path().to_owned());
        let (mut ca, keeper) = CaKeeper::start(ca).await.unwrap();
        assert_eq!(ca.now().as_deref(), Some(&*first));
        // From here on, time passes as soon as all wait.
        tokio::time::pause();
        let stop = CancellationToken::new();
        let keeping = keeper.run(stop.clone());
        let changing = async {
            write("none");
            tokio::time::sleep(2 * LOOK_EVERY).await;
            assert_eq!(ca.now().as_deref(), Some(&*first));
            write(&second);
            ca.0.changed().await.unwrap();
            stop.cancel();
        };
        tokio::join!(keeping, changing);
        assert_eq!(ca.now().as_deref(), Some(&*second));
    }
}
