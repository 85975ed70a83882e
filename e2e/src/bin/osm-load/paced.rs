//! Work begun at a steady rate.

use std::time::{Duration, Instant};

use futures::{Stream, stream};

/// Work that begins at a steady rate, `gap` apart, or as soon as whoever drives it allows: how much may be under way is theirs
/// to say (`buffered`). Late work does not make what follows later.
pub(crate) fn paced<F: Future>(
    count: u64,
    gap: Duration,
    work: impl Fn(u64) -> F,
) -> impl Stream<Item = impl Future<Output = F::Output>> {
    let begun = Instant::now();
    let one = move |number: u64| {
        let work = work(number);
        async move {
            tokio::time::sleep_until((begun + gap.mul_f64(number as f64)).into()).await;
            work.await
        }
    };
    let mut next = 0;
    stream::iter(std::iter::from_fn(move || {
        next += 1;
        (next <= count).then(|| one(next - 1))
    }))
}
