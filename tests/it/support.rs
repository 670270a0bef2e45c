//! Fakes and handles of real servers, shared by the tests.
