//! XIDs, sets of XIDs and known states: parse and format (spec parts 1, 3 and 4). Pure.
