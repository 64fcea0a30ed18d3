"""What the tests share: servers, sites and builders."""
