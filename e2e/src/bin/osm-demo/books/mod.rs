//! The book trade: bookbuyer and bookthief want books, bookstore sells them, bookwarehouse delivers them.

pub(crate) mod customer;
pub(crate) mod store;
pub(crate) mod warehouse;

/// Where bookstore and bookwarehouse listen.
pub(crate) const PORT: u16 = 14001;
