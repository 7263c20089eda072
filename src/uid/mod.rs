//! Which commands reach above a watermark (spec part 6). Pure.
