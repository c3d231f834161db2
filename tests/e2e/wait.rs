//! Waiting for what is to come, with an end.

use std::{fmt::Debug, time::Duration};

use anyhow::bail;
use tokio::time::{Instant, sleep};

use crate::processes::Ended;

const EACH: Duration = Duration::from_millis(250);

/// Looks again and again until it is as expected; says how long that took. The error tells what
/// was seen last.
pub(crate) async fn until<T: Debug>(
    what: &str,
    bound: Duration,
    look: impl AsyncFn() -> anyhow::Result<T>,
    is_expected: impl Fn(&T) -> bool,
) -> anyhow::Result<Duration> {
    let since = Instant::now();
    loop {
        let seen = look().await;
        match seen {
            Ok(seen) if is_expected(&seen) => return Ok(since.elapsed()),
            Err(error) if error.is::<Ended>() => return Err(error),
            _ if since.elapsed() > bound => bail!("not {what} within {bound:?}, but {seen:?}"),
            _ => sleep(EACH).await,
        }
    }
}

/// Looks again and again for this long, and it is always as expected.
pub(crate) async fn always<T: Debug>(
    what: &str,
    period: Duration,
    look: impl AsyncFn() -> anyhow::Result<T>,
    is_expected: impl Fn(&T) -> bool,
) -> anyhow::Result<()> {
    let since = Instant::now();
    while since.elapsed() < period {
        let seen = look().await?;
        if !is_expected(&seen) {
            bail!("not {what} after {:?}, but {seen:?}", since.elapsed());
        }
        sleep(EACH).await;
    }
    Ok(())
}

pub(crate) const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
