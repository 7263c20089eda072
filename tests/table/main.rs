//! The table under many processes, which die when it suits least.

mod child;
mod kills;
mod many;
mod steps;
mod world;
