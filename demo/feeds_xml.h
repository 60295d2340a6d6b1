#ifndef FEEDS_XML_H
#define FEEDS_XML_H

#include <libxml/tree.h>

/* A feed as a tree, or NULL when it is no XML. The caller frees it by xmlFreeDoc. */
xmlDocPtr parse_feed(const char *text, int length);

/* The content of the first <title>, or NULL; it belongs to the document. */
const char *feed_title(xmlDocPtr feed);

#endif
