// The cache is read and written here, the hub asked, and its refusals put into sentences.
#include "hub/repository.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/evp.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <future>
#include <memory>
#include <nlohmann/json.hpp>
#include <regex>
#include <span>

#include "core/error.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr size_t kAtOnce = 4;

// Of a revision or a path in a URL: "refs/convert/parquet" is one part of it.
std::string escaped(std::string_view text, std::string_view kept) {
  std::string result;
  for (const char c : text) {
    const bool plain = std::isalnum(static_cast<unsigned char>(c)) != 0 ||
                       std::string_view("-._~").find(c) != std::string_view::npos ||
                       kept.find(c) != std::string_view::npos;
    result += plain ? std::string(1, c) : fmt::format("%{:02X}", static_cast<unsigned char>(c));
  }
  return result;
}

// A path of a repository that stays within its folder.
bool is_within(const std::string& path) {
  const fs::path normal = fs::path(path).lexically_normal();
  return !path.empty() && normal.is_relative() && *normal.begin() != "..";
}

// The digest that an etag is: SHA-256 of a large file, git's SHA-1 of another. "" where it is none.
std::string digest_of(const fs::path& file, const std::string& etag) {
  const bool is_sha256 = etag.size() == 64;
  if ((!is_sha256 && etag.size() != 40) || !std::ranges::all_of(etag, [](char c) {
        return std::isxdigit(static_cast<unsigned char>(c));
      }))
    return "";
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> sum(EVP_MD_CTX_new(),
                                                                    EVP_MD_CTX_free);
  EVP_DigestInit_ex(sum.get(), is_sha256 ? EVP_sha256() : EVP_sha1(), nullptr);
  if (!is_sha256) {
    const std::string header = fmt::format("blob {}{}", fs::file_size(file), '\0');
    EVP_DigestUpdate(sum.get(), header.data(), header.size());
  }
  const Descriptor fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
  std::vector<char> buffer(size_t{1} << 20);
  for (ssize_t count = 0; (count = ::read(fd.get(), buffer.data(), buffer.size())) > 0;)
    EVP_DigestUpdate(sum.get(), buffer.data(), static_cast<size_t>(count));
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int size = 0;
  EVP_DigestFinal_ex(sum.get(), digest.data(), &size);
  std::string text;
  for (unsigned int i = 0; i < size; ++i) text += fmt::format("{:02x}", digest[i]);
  return text;
}

}  // namespace

void Progress::add(int64_t bytes) {
  done_ += bytes;
  const std::lock_guard lock(mutex_);
  if (!line_.is_due()) return;
  line_.show(fmt::format("Downloading: {:.1f} of {:.1f} MB, {:.1f} MB/s",
                         static_cast<double>(done_) / 1e6, static_cast<double>(expected_) / 1e6,
                         static_cast<double>(done_) / seconds() / 1e6));
}

double Progress::seconds() const {
  return std::chrono::duration<double>(Clock::now() - begin_).count();
}

FileLock::FileLock(const fs::path& file)
    : fd_((fs::create_directories(file.parent_path()),
           ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644))) {
  while (fd_.get() >= 0 && ::flock(fd_.get(), LOCK_EX) != 0 && errno == EINTR) continue;
}

Repository::Repository(std::string kind, std::string id, const HubOptions& options)
    : kind_(std::move(kind)), id_(std::move(id)), options_(options) {
  folder_name_ = fmt::format("{}--{}", kind_, std::regex_replace(id_, std::regex("/"), "--"));
  folder_ = options_.cache / folder_name_;
}

std::optional<fs::path> Repository::snapshot(const std::string& revision) const {
  std::error_code ignored;
  const fs::path ref = folder_ / "refs" / revision;
  if (!fs::exists(ref, ignored)) return std::nullopt;
  std::string commit = read_text_file(ref);
  while (commit.ends_with('\n')) commit.pop_back();
  return folder_of(commit);
}

fs::path Repository::folder_of(const std::string& commit) const {
  return folder_ / "snapshots" / commit;
}

bool Repository::is_known_absent(const fs::path& snapshot, const std::string& file) const {
  std::error_code ignored;
  return fs::exists(folder_ / ".no_exist" / snapshot.filename() / file, ignored);
}

FileLock Repository::lock_notes() const {
  return FileLock(options_.cache / ".locks" / folder_name_ / "refs.lock");
}

void Repository::note_absent(const std::string& commit, const std::string& file) const {
  const fs::path mark = folder_ / ".no_exist" / commit / file;
  fs::create_directories(mark.parent_path());
  write_text_file(mark, "");
}

void Repository::note_commit(const std::string& revision, const std::string& commit) const {
  const fs::path ref = folder_ / "refs" / revision;
  fs::create_directories(ref.parent_path());
  write_text_file(ref, commit);
}

RepositoryFiles Repository::list(const std::string& revision) const {
  const json info = ask(fmt::format("{}/api/{}/{}/revision/{}", options_.endpoint, kind_, id_,
                                    escaped(revision, "")));
  RepositoryFiles all;
  try {
    all.revision = info.at("sha").get<std::string>();
    for (const json& file : info.at("siblings")) all.files.push_back(file.at("rfilename"));
  } catch (const json::exception&) {
    throw run_error("{} gave an answer that is no list of files of {}", options_.endpoint, id_);
  }
  std::ranges::sort(all.files);
  return all;
}

json Repository::ask(const std::string& url) const {
  if (options_.offline)
    throw user_error("{} {} is not in {}, and HF_HUB_OFFLINE forbids to ask for it", what(), id_,
                     options_.cache.string());
  const http::Response response = http::fetch({.url = url, .token = options_.token});
  require_success(response, "");
  json parsed = json::parse(response.body, nullptr, false);
  if (parsed.is_discarded())
    throw run_error("{} gave an answer that is no JSON to {}", options_.endpoint, url);
  return parsed;
}

std::string Repository::bring(const RepositoryFiles& wanted, Progress& progress) const {
  std::vector<std::future<std::string>> under_way;
  std::string commit;
  for (size_t i = 0; i < wanted.files.size() + kAtOnce; ++i) {
    if (i >= kAtOnce && i - kAtOnce < wanted.files.size()) commit = under_way[i - kAtOnce].get();
    if (i >= wanted.files.size()) continue;
    under_way.push_back(std::async(std::launch::async, [&, file = wanted.files[i]] {
      return download(wanted.revision, file, progress);
    }));
  }
  return commit;
}

// The hub's refusals, each with what to do.
void Repository::require_success(const http::Response& response, const std::string& file) const {
  if (response.status >= 200 && response.status < 300) return;
  const std::string code = response.header("x-error-code");
  const bool has_token = !options_.token.empty();
  const std::string name = what() + " " + id_;
  const std::string page = options_.endpoint + (kind_ == "models" ? "/" : "/datasets/") + id_;
  if (code == "GatedRepo")
    throw user_error("{} is gated: accept its terms at {}, and give {} in HF_TOKEN", name, page,
                     has_token ? "the token of who has accepted them" : "your token");
  if (code == "EntryNotFound")
    throw user_error("{} has no file {} on {}", name, file, options_.endpoint);
  if (code == "RevisionNotFound")
    throw user_error("{} has no such revision on {}", name, options_.endpoint);
  if (code == "RepoNotFound" || response.status == 404)
    throw user_error(
        "{} has no {}, or it is private{}: check the name, or give a token that may "
        "read it in HF_TOKEN",
        options_.endpoint, name, has_token ? " and the token may not read it" : "");
  if (response.status == 401 || response.status == 403)
    throw user_error(
        "{} refuses {} ({}): {}", options_.endpoint, name, response.status,
        has_token ? "the token in HF_TOKEN is not valid for it" : "give a token in HF_TOKEN");
  if (response.status == 429)
    throw run_error("{} answers that there were too many requests (429): wait some minutes{}",
                    options_.endpoint,
                    has_token ? "" : ", or give a token in HF_TOKEN, which may ask more often");
  const std::string said = response.header("x-error-message");
  throw run_error("{} answers {} for {}{}", options_.endpoint, response.status, name,
                  said.empty() ? "" : ": " + plain_sentence(said));
}

// → the commit that the revision is.
std::string Repository::download(const std::string& revision, const std::string& file,
                                 Progress& progress) const {
  if (!is_within(file))
    throw user_error("{} {} has a file called {}, which leaves its folder", what(), id_, file);
  const std::string url =
      fmt::format("{}/{}{}/resolve/{}/{}", options_.endpoint, kind_ == "models" ? "" : "datasets/",
                  id_, escaped(revision, ""), escaped(file, "/"));
  const http::Response head =
      http::fetch({.url = url, .token = options_.token, .head = true, .leave = false});
  if (head.status < 300 || head.status >= 400) require_success(head, file);
  std::string etag = head.header("x-linked-etag");
  if (etag.empty()) etag = head.header("etag");
  if (etag.starts_with("W/")) etag.erase(0, 2);
  std::erase(etag, '"');
  const std::string commit = head.header("x-repo-commit");
  if (!is_within(etag) || etag.find('/') != etag.npos || !is_within(commit) ||
      commit.find('/') != commit.npos)
    throw run_error("{} does not say which version of {} it has: is it a hub?", options_.endpoint,
                    file);
  std::string size = head.header("x-linked-size");
  if (size.empty()) size = head.header("content-length");
  const int64_t bytes = std::atoll(size.c_str());

  const fs::path blob = folder_ / "blobs" / etag;
  const FileLock lock(options_.cache / ".locks" / folder_name_ / (etag + ".lock"));
  if (!fs::exists(blob)) bring_blob(url, file, blob, etag, bytes, progress);
  const fs::path link = folder_of(commit) / file;
  fs::create_directories(link.parent_path());
  const fs::path target = blob.lexically_relative(link.parent_path());
  std::error_code taken;
  fs::create_symlink(target, link, taken);
  if (taken && !fs::exists(link)) {  // a link to what is gone
    fs::remove(link);
    fs::create_symlink(target, link);
  }
  return commit;
}

void Repository::bring_blob(const std::string& url, const std::string& file, const fs::path& blob,
                            const std::string& etag, int64_t bytes, Progress& progress) const {
  fs::create_directories(blob.parent_path());
  const fs::path partial = blob.string() + ".incomplete";
  const Descriptor fd(::open(partial.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
  if (fd.get() < 0)
    throw user_error("cannot write {}: {}; set HF_HOME to a folder that is yours", partial.string(),
                     std::strerror(errno));
  auto have = static_cast<int64_t>(fs::file_size(partial));
  if (have > bytes) have = 0;
  progress.expect(bytes - have);
  if (have < bytes) {
    const auto take = [&](std::span<const char> data, int64_t offset) {
      while (!data.empty()) {
        const ssize_t written = ::pwrite(fd.get(), data.data(), data.size(), offset);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0)
          throw run_error("cannot write {}: {}; make room or set HF_HOME to another folder",
                          partial.string(), std::strerror(errno));
        data = data.subspan(static_cast<size_t>(written));
        offset += written;
        progress.add(written);
      }
    };
    require_success(http::fetch({.url = url, .token = options_.token, .from = have, .take = take}),
                    file);
  }
  const auto came = static_cast<int64_t>(fs::file_size(partial));
  const std::string digest = came == bytes ? digest_of(partial, etag) : "";
  if (came != bytes || (!digest.empty() && digest != etag)) {
    fs::remove(partial);
    throw run_error("{} of {} came damaged from {} ({}); it was removed, try again", file, id_,
                    options_.endpoint,
                    came != bytes ? fmt::format("{} bytes instead of {}", came, bytes)
                                  : "its checksum differs");
  }
  if (::fsync(fd.get()) != 0)
    throw run_error("cannot flush {}: {}", partial.string(), std::strerror(errno));
  fs::rename(partial, blob);
}

}  // namespace picotron
