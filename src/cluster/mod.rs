//! The cluster protocol as a value: states, messages and timers in, actions out. Pure.
