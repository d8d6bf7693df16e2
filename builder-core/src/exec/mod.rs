//! Runs a plan: order, cache, cancellation, events. The only module that sees the others together.
