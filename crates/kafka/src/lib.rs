//! Kafka topics to events
