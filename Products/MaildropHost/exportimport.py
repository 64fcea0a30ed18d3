"""A MaildropHost in GenericSetup's ``mailhost.xml``: title, transactional mode and the key of its config file, no password.

What such a file says of the stock MailHost (``smtp_host`` and its like) is passed over: the config file says it.
"""

from Products.GenericSetup.interfaces import ISetupEnviron
from Products.GenericSetup.utils import XMLAdapterBase
from zope.component import adapter

from Products.MaildropHost.interfaces import IMaildropHost


@adapter(IMaildropHost, ISetupEnviron)
class MaildropHostXMLAdapter(XMLAdapterBase):
    """XML importer and exporter."""

    _LOGGER_ID = name = "mailhost"

    def _exportNode(self):
        node = self._getObjectNode("object")
        node.setAttribute("title", self.context.title)
        node.setAttribute("transactional", str(self.context.isTransactional()))
        path = self.context.getConfigPath()
        keys = [key for key, each in self.context.getCandidateConfigPaths() if each == path]
        if keys:
            named = [key for key in keys if key != "DEFAULT"]    # the default may be another file elsewhere
            node.setAttribute("path_key", (named or keys)[0])
        else:
            self._logger.warning("The config file %s is no choice any more, so it is not exported.", path)
        self._logger.info("Maildrop Host exported.")
        return node

    def _importNode(self, node):
        """Raises ValueError, RuntimeError for a config file that cannot be used here; then nothing is changed."""
        if node.hasAttribute("path_key"):
            key = node.getAttribute("path_key")
            try:
                self.context.setConfigPath(key)
            except (ValueError, RuntimeError) as error:
                raise type(error)(f"{self.filename}: path_key={key!r} of {self.context.getId()}: {error}") from error
        if node.hasAttribute("title"):
            self.context.title = node.getAttribute("title")
        if node.hasAttribute("transactional"):
            self.context._transactional = self._convertToBoolean(node.getAttribute("transactional"))
        self._logger.info("Maildrop Host imported.")
