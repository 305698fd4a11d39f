//! Submissions resolved at the edge: everything `apply` is to know of the catalog and the settings, put into the event (rule M1).
