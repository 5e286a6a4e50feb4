-- SPDX-License-Identifier: BSD-3-Clause
--
-- pandoc filter for the HTML rendering: identifiers in the text become links to
-- their sentence, and labels, which have spaces in LaTeX, become valid HTML ids.

local function slug(s)
  return (s:gsub('[^%w:_.-]+', '-'))
end

-- A bold "[INV-D-1]" is the place where a clause is defined: its own link target.
local function define(el)
  local span = el.content[1]
  if #el.content == 1 and span.t == 'Span' and span.identifier:match('^%u+%-[DR]%-%d+$') then
    local attr = pandoc.Attr(span.identifier, { 'clause' })
    return pandoc.Link(span.content, '#' .. span.identifier, '', attr), false
  end
end

local function mention(el)
  local before, id, after = el.text:match('^(%p*)(%u+%-[DR]%-%d+)(%p*)$')
  if id and before ~= '[' then
    return { pandoc.Str(before), pandoc.Link(id, '#' .. id), pandoc.Str(after) }
  end
end

return {
  {
    traverse = 'topdown',
    Strong = define,
    Header = function(el)
      el.identifier = slug(el.identifier)
      return el
    end,
    Link = function(el)
      if el.target:sub(1, 1) == '#' then
        el.target = '#' .. slug(el.target:sub(2))
      end
      el.attributes = {}
      return el
    end,
  },
  { Str = mention },
}
