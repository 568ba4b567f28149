"""What the tests share: real servers, one fresh mesh per test, a gateway with an account of its own."""
