//! One member of a simulated group, as the node sees it: the seam [`RecordSource`] over [`Broker`].
//!
//! Owns: waiting, and that a member whose process dies is gone. Does not own: anything that brokers decide.

use crate::broker::{Broker, Next};
use std::time::Duration;
use surefoot_env::BoxFuture;
use surefoot_kafka::{BoxNext, ErrorKind, RecordSource, SourceClient, SourceError, SourceSpec, TopicInfo};

/// How long a member waits for brokers that do not answer.
const TIMEOUT: Duration = Duration::from_secs(1);

pub(crate) struct SimClient(pub(crate) Broker);

impl SourceClient for SimClient {
    fn open(&self, spec: &SourceSpec, _: usize) -> Result<Box<dyn RecordSource>, SourceError> {
        let id = self.0.open(&spec.properties["group.id"], &spec.topic);
        Ok(Box::new(Member { broker: self.0.clone(), id }))
    }
}

struct Member {
    broker: Broker,
    id: u64,
}

impl Member {
    /// An answer of the brokers, or that there is none.
    fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Broker) -> Result<T, SourceError> + Send + 'static,
    ) -> BoxFuture<Result<T, SourceError>> {
        let (broker, latency) = (self.broker.clone(), self.broker.latency());
        Box::pin(async move {
            broker.executor.sleep(latency).await;
            if broker.is_down() {
                broker.executor.sleep(TIMEOUT).await;
                return Err(SourceError::new(ErrorKind::Unavailable, "no broker answers"));
            }
            question(&broker)
        })
    }
}

impl RecordSource for Member {
    fn topic(&mut self) -> BoxFuture<Result<TopicInfo, SourceError>> {
        let id = self.id;
        self.ask(move |broker| broker.describe(id))
    }

    fn committed(&mut self, partitions: &[i32]) -> BoxFuture<Result<Vec<(i32, i64)>, SourceError>> {
        let (id, partitions) = (self.id, partitions.to_vec());
        self.ask(move |broker| Ok(broker.committed(id, &partitions)))
    }

    fn since(&mut self, partitions: &[i32], timestamp_ms: u64) -> BoxFuture<Result<Vec<(i32, i64)>, SourceError>> {
        let (id, partitions) = (self.id, partitions.to_vec());
        self.ask(move |broker| Ok(broker.since(id, &partitions, timestamp_ms)))
    }

    fn subscribe(&mut self) -> Result<(), SourceError> {
        self.broker.subscribe(self.id);
        Ok(())
    }

    fn next(&mut self, takes_records: bool) -> BoxNext<'_> {
        Box::pin(async move {
            loop {
                match self.broker.next(self.id, takes_records) {
                    Next::Event(event) => return event,
                    Next::Records(latency) => {
                        self.broker.executor.sleep(latency).await;
                        if let Some(records) = self.broker.take(self.id) {
                            return records;
                        }
                    }
                    Next::Nothing(wake) => wake.notified().await,
                }
            }
        })
    }

    fn assign(&mut self, generation: u64, starts: &[(i32, i64)]) -> Result<(), SourceError> {
        self.broker.assign(self.id, generation, starts);
        Ok(())
    }

    fn release(&mut self, _: u64, partitions: &[i32]) -> Result<(), SourceError> {
        self.broker.release(self.id, partitions);
        Ok(())
    }

    fn hold(&mut self, partitions: &[i32]) -> Result<(), SourceError> {
        self.broker.set_held(self.id, partitions, true);
        Ok(())
    }

    fn resume(&mut self, partitions: &[i32]) -> Result<(), SourceError> {
        self.broker.set_held(self.id, partitions, false);
        Ok(())
    }

    fn commit(&mut self, positions: &[(i32, i64)]) {
        self.broker.commit(self.id, positions);
    }

    fn commit_now(&mut self, positions: &[(i32, i64)]) -> BoxFuture<Result<(), SourceError>> {
        let (id, term, positions) = (self.id, self.broker.term(self.id), positions.to_vec());
        self.ask(move |broker| broker.commit_now(id, term, &positions))
    }

    fn close(self: Box<Self>) -> BoxFuture<()> {
        let (executor, latency) = (self.broker.executor.clone(), self.broker.latency());
        drop(self);
        executor.sleep(latency)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.broker.leave(self.id);
    }
}
